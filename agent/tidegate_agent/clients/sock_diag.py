"""Which socket is at the other end of a redirected connection: one sock_diag(7) request (linux/inet_diag.h).

The back end knows what the client's own socket has for its peer (NAT rewrites packets and not sockets), so it
is found exactly, by addresses and ports, without a dump. Any user may ask; the answer holds the socket's
inode, its cookie, its user, and the id of the cgroup (v2, Linux 5.8) in which it was made.

Only this network namespace is seen: a forwarded client's socket is not found. What a socket means is not
known here.
"""

import os
import socket
import struct
from dataclasses import dataclass
from types import TracebackType

from tidegate_proxy.endpoint import Endpoint

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 0x1
_INET_DIAG_CGROUP_ID = 21
_ATTRIBUTE_TYPE = 0x3FFF
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_SOCKID = struct.Struct("!HH16s16s")  # inet_diag_sockid, and after it (host order) interface and cookie
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states
_ANYWHERE = struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
_ANSWER = struct.Struct("=4x40xII12xII")  # inet_diag_msg: ..., the cookie's halves, ..., uid, inode
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST_BYTES = _HEADER.size + _REQUEST.size + _SOCKID.size + len(_ANYWHERE)
# The kernel answers before send() returns: this only bounds a bug. settimeout() would poll before each call.
_TIMEOUT = struct.pack("@ll", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFacts:
    """`inode` is the number in `/proc/PID/fd`'s links; `cgroup_id` is 0 where the kernel does not tell.

    No other socket ever has the same `cookie` (SO_COOKIE, socket(7)).
    """

    inode: int
    uid: int
    cgroup_id: int
    cookie: int = 0


def request(local: Endpoint, remote: Endpoint, sequence: int) -> bytes:
    """The message that asks for the one TCP socket with this name and this peer."""
    family = socket.AF_INET if remote.address.version == 4 else socket.AF_INET6
    return b"".join(
        (
            _HEADER.pack(_REQUEST_BYTES, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence, 0),
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES),
            _SOCKID.pack(local.port, remote.port, local.address.packed, remote.address.packed),
            _ANYWHERE,
        )
    )


def parse_answer(data: bytes, sequence: int) -> SocketFacts | None:
    """What the kernel tells about the socket of request `sequence`; None when it found none.

    Raises ValueError for an answer to another request, or one that is no answer.
    """
    try:
        _, kind, _, answered, _ = _HEADER.unpack_from(data)
        if answered != sequence:
            raise ValueError(f"the answer is to request {answered}, not {sequence}")
        if kind == _NLMSG_ERROR:
            return None  # ENOENT; any other refusal leaves the client as unknown as that
        if kind != _SOCK_DIAG_BY_FAMILY:
            raise ValueError(f"a message of type {kind}")
        low, high, uid, inode = _ANSWER.unpack_from(data, _HEADER.size)
        return SocketFacts(
            inode=inode,
            uid=uid,
            cgroup_id=_cgroup_id(data, _HEADER.size + _ANSWER.size),
            cookie=high << 32 | low,
        )
    except struct.error as error:
        raise ValueError(f"a message of {len(data)} bytes is cut short") from error


def _cgroup_id(data: bytes, offset: int) -> int:
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if kind & _ATTRIBUTE_TYPE == _INET_DIAG_CGROUP_ID:
            (cgroup_id,) = struct.unpack_from("=Q", data, offset + _ATTRIBUTE.size)
            return int(cgroup_id)
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return 0


class SockDiag:
    """One netlink socket of this network namespace. Synchronous: an answer takes microseconds."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has no sock_diag."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> "SockDiag":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, local: Endpoint, remote: Endpoint) -> SocketFacts | None:
        """The TCP socket with this name and this peer, None when there is none; raises OSError."""
        if local.address.version != remote.address.version:
            return None
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self._sock.send(request(local, remote, self._sequence))
        for _ in range(4):  # an answer that an interrupted call left behind may come first
            try:
                return parse_answer(self._sock.recv(4096), self._sequence)
            except ValueError:
                continue
        raise OSError(f"sock_diag does not answer request {self._sequence} (pid {os.getpid()})")

    def close(self) -> None:
        self._sock.close()
