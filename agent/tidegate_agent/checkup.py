"""`tidegate doctor`: asks the agent and the machine, and prints what keeps pulls from the cache."""

import socket
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tidegate_agent.admin_request import request_status
from tidegate_agent.bridges import dump
from tidegate_agent.config import AgentConfig
from tidegate_agent.doctor import Diagnosis, Machine, diagnosis, findings, nobody_answers
from tidegate_agent.own_traffic import exemption
from tidegate_agent.status import Status
from tidegate_agent.steering.exemption import ByUid
from tidegate_agent.steering.netlink import attributes
from tidegate_core.errors import TidegateError

_RTM_NEWRULE, _RTM_GETRULE = 32, 34
_FRA_FWMARK, _FRA_FWMASK = 10, 16
_RULE_HEADER = struct.Struct("=12x")  # struct fib_rule_hdr


def examine(config: AgentConfig) -> Diagnosis:
    """What is wrong here and now."""
    try:
        text = request_status(config.socket_path)
    except TidegateError as error:
        return diagnosis([nobody_answers(error)])
    try:
        status = msgspec.json.decode(text.encode(), type=Status)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the agent's answer is of another version's form: {error}", next_step="restart the agent"
        ) from error
    return diagnosis(findings(status, _machine(config, status.pid), now=datetime.now(UTC)))


def _machine(config: AgentConfig, pid: int) -> Machine:
    exempt = exemption(config.steering.mark, uid=_owner(pid))
    return Machine(
        mark=None if isinstance(exempt, ByUid) else exempt,
        forwarded=config.steering.forwarded,
        policy_marks=tuple(_policy_marks()),
        tracked=_number("nf_conntrack_count"),
        trackable=_number("nf_conntrack_max"),
    )


def _owner(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return 0


def _number(name: str) -> int:
    try:
        return int(Path(f"/proc/sys/net/netfilter/{name}").read_text())
    except (OSError, ValueError):
        return 0


def _policy_marks() -> Iterator[tuple[int, int]]:
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = bytes([family]) + bytes(_RULE_HEADER.size - 1)
            for message in dump(_RTM_GETRULE, _RTM_NEWRULE, body):
                told = dict(attributes(message[_RULE_HEADER.size :]))
                mark = int.from_bytes(told.get(_FRA_FWMARK, b""), "little")
                mask = int.from_bytes(told.get(_FRA_FWMASK, b""), "little")
                if mask:
                    yield mark, mask
    except OSError:  # no policy routing, then
        return
