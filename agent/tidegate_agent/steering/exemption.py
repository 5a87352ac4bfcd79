"""How the agent's own traffic is recognised, so that it is never steered (DESIGN 3, I5).

Two ways: a mark under a mask on each of our sockets (socket(7), SO_MARK), or the uid the agent runs as.
The mark leaves the bits outside its mask alone, because kube-proxy, Calico, Cilium and Tailscale keep theirs
there. This module does not decide which of the two is used, and renders no rule: `ruleset` does.
"""

import socket
from dataclasses import dataclass

from tidegate_core.errors import UsageError

_MARK_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ByMark:
    """Our sockets carry `value` in the mark bits that `mask` selects; `str` gives `0x74/0xff`."""

    value: int
    mask: int = _MARK_BITS

    def __post_init__(self) -> None:
        if not 0 < self.mask <= _MARK_BITS or not self.value or self.value & ~self.mask:
            raise UsageError(
                f"the mark {self.value:#x} does not fit its mask {self.mask:#x}",
                next_step='Write a mark as VALUE/MASK, for example mark = "0x74/0xff".',
            )

    @classmethod
    def parse(cls, text: str) -> "ByMark":
        """Read `0x74/0xff` or a mark without a mask; raises UsageError."""
        value, _, mask = text.partition("/")
        try:
            return cls(value=int(value, 0), mask=int(mask, 0) if mask else _MARK_BITS)
        except ValueError:
            raise UsageError(
                f"not a mark: {text!r}",
                next_step='Write a mark as VALUE/MASK, for example mark = "0x74/0xff".',
            ) from None

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"

    def exempt(self, sock: socket.socket) -> None:
        """Mark `sock`, keeping what others set outside our mask; raises PermissionError without the right."""
        others = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & ~self.mask
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, others | self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByUid:
    """Every socket of this user is ours: for an agent that runs as a user of its own."""

    uid: int

    def __str__(self) -> str:
        return f"uid {self.uid}"

    def exempt(self, sock: socket.socket) -> None:
        """Nothing to do: the kernel knows the uid of a socket."""


Exemption = ByMark | ByUid

DEFAULT_MARK = ByMark(value=0x74, mask=0xFF)
