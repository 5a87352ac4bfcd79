"""The keeper table: lets connections in flight at the agent's death end cleanly, and goes when all is over.

It steers nothing. While it stands, the FIN of a dying agent still passes through NAT (docs/decisions/0012).
One netlink socket owns it, opened by the supervisor before it forks and so held by both processes: the
table stays while either lives, and the kernel deletes it when both are gone, however they end.

The agent holds a second one, which is its own. A process that dies gives its share of every descriptor up at
once, and closes those that nobody shares from the highest to the lowest: a keeper that is shared can go with
a supervisor that dies at the same moment, and only one that is not, and was opened before any descriptor that
a connection could get, is there until every connection has said its last word.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from tidegate_agent.steering.encoding import new_table
from tidegate_agent.steering.netlink import NetlinkError, NftSocket
from tidegate_agent.steering.plan import KEEPER
from tidegate_agent.steering.ruleset import keeper_table
from tidegate_core.errors import StartRefused

# tcp_states.h, as /proc/net/tcp prints them. In FIN_WAIT2 the peer has all our data and our FIN already.
_NEEDS_NOTHING = frozenset({"05", "06", "0A"})  # FIN_WAIT2, TIME_WAIT, LISTEN
_NAME_TAKEN = (errno.EPERM, errno.EEXIST, errno.EOPNOTSUPP)
_POLL_S = 0.05


class Keeper:
    """The socket that owns the table; each process that holds it keeps the table."""

    def __init__(self) -> None:
        """Open it, before any other descriptor; raises StartRefused where the kernel has no nftables."""
        try:
            self._nft = NftSocket()
        except OSError as error:
            raise StartRefused(
                f"this kernel has no netfilter netlink ({error.strerror})",
                next_step="Load it with: modprobe nf_tables",
            ) from error
        self._second_name = f"{KEEPER}_{os.getpid()}"
        self._own: NftSocket | None = None

    def hold(self) -> None:
        """Hold a table of this process's own as well; in the agent, before it opens any other descriptor."""
        self._own = NftSocket()

    def fileno(self) -> int:
        """The descriptor whose last holder keeps the table."""
        return self._nft.fileno()

    def put_in(self) -> None:
        """Add the tables, or see that they are there; raises NetlinkError."""
        if self._own is not None:
            self._own.commit(new_table(keeper_table(f"{KEEPER}_{os.getpid()}")))
        try:
            self._nft.commit(new_table(keeper_table()))
        except NetlinkError as error:
            if error.errno not in _NAME_TAKEN:
                raise
            # An agent that lingers for others' connections has the name, and will end before us.
            self._nft.commit(new_table(keeper_table(self._second_name)))

    def let_go(
        self, port: int, *, within_s: float = 10.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Stop holding the table, once the kernel has ended the connections on `port` that nobody holds.

        Those that a process holds need no waiting for: it holds the table too. Idempotent.
        """
        deadline = time.monotonic() + within_s
        while orphans(port) and time.monotonic() < deadline:
            sleep(_POLL_S)
        self._nft.close()


def orphans(port: int, *, proc: Path = Path("/proc")) -> int:
    """How many sockets on TCP port `port` have something left to tell their peer and no process holding them.

    The kernel is ending these (tcp(7), tcp_orphan_retries).
    """
    suffix = f":{port:04X}"
    found = 0
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "thread-self/net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6 here
            continue
        for line in lines:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            found += local.endswith(suffix) and state not in _NEEDS_NOTHING and inode == "0"
    return found
