"""Single requests to other parts of netfilter than nftables: ipset and connection tracking (nfnetlink.h).

Each is answered at once, by its errno. What requests mean is not known here.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_TIMEOUT = struct.pack("@ll", 2, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Subsystem and command, the packet's family, attributes, words for an error."""

    subsystem: int
    command: int
    family: int = socket.AF_INET
    flags: int = 0
    body: bytes
    doing: str


class RequestRefused(OSError):
    """The kernel refused a request: `doing` says which. Numbers from 4096 on are a subsystem's own."""

    def __init__(self, number: int, *, doing: str) -> None:
        super().__init__(number, os.strerror(number))
        self.doing = doing

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, f"error {self.errno}")
        return f"{self.doing}: {name}{f' {self.strerror}' if (self.errno or 0) < 4096 else ''}"


class RequestSocket:
    """A netlink socket; opening it raises OSError where the kernel has no netfilter netlink."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> "RequestSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The netlink port of this socket."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        self._socket.close()

    def send(self, request: Request) -> None:
        """Have it done; raises RequestRefused."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        body = struct.pack("!BBH", request.family, 0, 0) + request.body
        kind, flags = request.subsystem << 8 | request.command, _NLM_F_REQUEST | _NLM_F_ACK | request.flags
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            answer = self._socket.recv(65536)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if kind == _NLMSG_ERROR and sequence == self._sequence:
                number: int = -struct.unpack_from("=i", answer, _HEADER.size)[0]
                if number:
                    raise RequestRefused(number, doing=request.doing)
                return
