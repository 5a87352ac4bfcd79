"""One steering agent for each network namespace, whatever its back end: a name that its process holds.

An abstract unix socket (unix(7)) belongs to the network namespace, as rules do, and the kernel frees its name
when the last process that holds it ends. It is what tells rules without an owner, left by a dead agent, from
those of a living one. Nobody is served on it.
"""

import errno
import socket
from pathlib import Path

from tidegate_agent.steering.holder import holder_of
from tidegate_core.errors import StartRefused

_NAME = "tidegate-steering"


class AnotherSteers(StartRefused):
    """Another agent steers this host: no back end may be tried."""


class Claim:
    """The held name; `close` it, or end."""

    def __init__(self) -> None:
        """Take the name; raises AnotherSteers with the process that has it."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(f"\0{_NAME}")
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise another_steers(_holder(), f"holds the name @{_NAME}") from error

    def close(self) -> None:
        """Give the name up. Idempotent."""
        self._socket.close()


def another_steers(pid: int | None, what: str) -> AnotherSteers:
    """The refusal; `pid` None where the process cannot be seen from here."""
    who = f"process {pid}" if pid else "a process that cannot be seen from here"
    return AnotherSteers(
        f"another agent steers this host: {who} {what}",
        next_step=f"Stop that one first: kill {pid}" if pid else "Stop that one first.",
    )


def _holder(proc: Path = Path("/proc")) -> int | None:
    for line in (proc / "thread-self/net/unix").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[-1] == f"@{_NAME}":
            return holder_of(f"socket:[{columns[6]}]", proc=proc)
    return None
