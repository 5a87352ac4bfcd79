"""How the agent's own traffic is recognised, so that it is never steered (DESIGN 3, I5).

Two ways: a mark under a mask on each of our sockets, or the uid the agent runs as. This module does not
decide which of the two is used, and renders no rule: `statement` does.
"""

import socket
from dataclasses import dataclass

from tidegate_agent.firewall_mark import DEFAULT_MARK, ByMark
from tidegate_core.errors import StartRefused

__all__ = ["DEFAULT_MARK", "RUN_AS_ROOT", "ByMark", "ByUid", "Exemption", "check_exemption"]

RUN_AS_ROOT = "Run it as root, or give it CAP_NET_ADMIN (systemd: AmbientCapabilities=CAP_NET_ADMIN)."


@dataclass(frozen=True, slots=True, kw_only=True)
class ByUid:
    """Every socket of this user is ours: for an agent that runs as a user of its own."""

    uid: int

    def __str__(self) -> str:
        return f"uid {self.uid}"

    def exempt(self, sock: socket.socket) -> None:
        """Nothing to do: the kernel knows the uid of a socket."""


Exemption = ByMark | ByUid


def check_exemption(exemption: Exemption) -> None:
    """StartRefused where sockets of ours could not be exempted: they would come back to us for ever."""
    with socket.socket() as scratch:
        try:
            exemption.exempt(scratch)
        except PermissionError as error:
            raise StartRefused(f"no right to mark sockets with {exemption}", next_step=RUN_AS_ROOT) from error
