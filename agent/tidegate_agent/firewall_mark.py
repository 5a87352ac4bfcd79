"""A firewall mark on sockets of ours (socket(7), SO_MARK), as configuration and rules know it.

It leaves the bits outside its mask alone, because kube-proxy, Calico, Cilium and Tailscale keep theirs there.
Imports the standard library only: the supervisor reads the configuration too.
"""

import socket
from dataclasses import dataclass

_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ByMark:
    """Our sockets carry `value` in the mark bits that `mask` selects; `str` gives `0x74/0xff`."""

    value: int
    mask: int = _BITS

    def __post_init__(self) -> None:
        if not 0 < self.mask <= _BITS or not self.value or self.value & ~self.mask:
            raise ValueError(
                f"the mark {self.value:#x} must lie within its mask {self.mask:#x} and must not be 0"
            )

    @classmethod
    def parse(cls, text: str) -> "ByMark":
        """Read `0x74/0xff`, or a mark without a mask, which is matched whole; raises ValueError."""
        value, slash, mask = text.partition("/")
        return cls(value=int(value, 0), mask=int(mask, 0) if slash else _BITS)

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"

    def exempt(self, sock: socket.socket) -> None:
        """Mark `sock`, keeping what others set outside our mask; raises PermissionError without the right."""
        others = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & ~self.mask
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, others | self.value)


DEFAULT_MARK = ByMark(value=0x74, mask=0xFF)
