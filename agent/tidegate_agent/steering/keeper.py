"""The keeper table's end: removed when no connection that was redirected still needs it (NOTES: fd order).

While it stands, connections in flight when the agent dies get their FIN un-NATed. It is removed by the
supervisor after the agent's final exit, by a clean stop, or by ExecStopPost; the next start adopts it.
"""

import errno
import time
from collections.abc import Callable
from pathlib import Path

from tidegate_agent.steering.encoding import delete_table, get_table
from tidegate_agent.steering.netlink import NetlinkError, NftSocket
from tidegate_agent.steering.ruleset import KEEPER, TABLE

# tcp_states.h, as /proc/net/tcp prints them. In FIN_WAIT2 the peer has all our data and our FIN already.
_NEEDS_NOTHING = frozenset({"05", "06", "0A"})  # FIN_WAIT2, TIME_WAIT, LISTEN
_POLL_S = 0.05


def connections(port: int, *, proc: Path = Path("/proc")) -> int:
    """How many sockets on local TCP port `port` still have something to tell their peer."""
    return len(_inodes(port, proc))


def held(port: int, *, proc: Path = Path("/proc")) -> int:
    """How many of these a process holds; the others are orphans, which the kernel is ending (tcp(7))."""
    return sum(inode != "0" for inode in _inodes(port, proc))


def _inodes(port: int, proc: Path) -> list[str]:
    suffix = f":{port:04X}"
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "thread-self/net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6 here
            continue
        for line in lines:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if local.endswith(suffix) and state not in _NEEDS_NOTHING:
                found.append(inode)
    return found


def remove_keeper() -> None:
    """Delete the keeper table, if there is one; raises OSError."""
    nft = NftSocket()
    try:
        nft.commit(delete_table(KEEPER))
    finally:
        nft.close()


def remove_keeper_when_unused(
    port: int, *, within_s: float = 10.0, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Delete the keeper once no connection on `port` needs it; raises OSError.

    Orphans are waited for, at most `within_s`. Connections that a process holds keep the keeper: a lingering
    agent calls this at its own end, a steering one (perhaps a successor) has a supervisor that does.
    """
    deadline = time.monotonic() + within_s
    while connections(port) and not held(port) and time.monotonic() < deadline:
        sleep(_POLL_S)
    if not held(port) and not steered():
        remove_keeper()


def steered() -> bool:
    """Whether an agent's rules are in: the keeper is then that one's; raises OSError."""
    nft = NftSocket()
    try:
        nft.request(get_table(TABLE))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    finally:
        nft.close()
    return True
