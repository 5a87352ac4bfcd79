"""Why iptables cannot be used here, and what to type; from what the kernel and the programs said."""

import errno
import os

from tidegate_agent.steering.exemption import RUN_AS_ROOT
from tidegate_agent.steering.iptables.ipset import ENOSUCHTYPE
from tidegate_agent.steering.iptables.programs import ProgramFailed
from tidegate_agent.steering.nfnetlink import RequestRefused
from tidegate_core.errors import StartRefused

_MODULES = "ip_set_hash_ipport ip_set_hash_net xt_set xt_REDIRECT xt_connmark xt_mark xt_owner iptable_nat"


def refusal(error: OSError) -> StartRefused:
    """What it means that sets or rules could not be put in."""
    if isinstance(error, ProgramFailed):
        return _of_program(str(error))
    if error.errno == errno.EPERM:
        return StartRefused(
            "no right to change sets (CAP_NET_ADMIN)",
            next_step=RUN_AS_ROOT,
        )
    release = os.uname().release
    if isinstance(error, RequestRefused) and error.errno == ENOSUCHTYPE:
        return StartRefused(
            f"this kernel ({release}) has no such sets: {error}", next_step=f"modprobe -a {_MODULES}"
        )
    return StartRefused(f"this kernel ({release}) refused {error}", next_step=f"modprobe -a {_MODULES}")


def _of_program(said: str) -> StartRefused:
    if "there is no iptables-restore" in said or "there is no iptables-save" in said:
        return StartRefused(
            f"iptables is not installed: {said}",
            next_step="Install it: apt install iptables, or dnf install iptables",
        )
    if any(words in said for words in ("ermission", "you must be root", "open socket to ipset")):
        return StartRefused(
            f"no right to change rules with iptables: {said}",
            next_step="Give it CAP_NET_RAW too, as docs/operations/backends.md shows for systemd.",
        )
    return StartRefused(said, next_step=f"Load what is missing: modprobe -a {_MODULES}")
