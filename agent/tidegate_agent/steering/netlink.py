"""One netlink socket to nftables: transactions, acknowledgements, errors (linux/netlink.h, nfnetlink.h).

The messages are packed here and in `encoding` rather than with pyroute2's classes: importing those costs
150 ms and 22 MiB in every agent, packing a learned address with them takes four times as long, and its
sockets belong to the thread that made them. The process that holds this socket owns the table: the descriptor
is close-on-exec, and must not be inherited by a fork either. What the messages mean is not known here.
"""

import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate_agent.steering.descriptor import moved_up
from tidegate_agent.steering.holder import holder_of

NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x1, 0x4, 0x200, 0x400, 0x800

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP = 0x300
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SUBSYS_NFTABLES = 10
_NFPROTO_INET = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_BATCH = struct.pack("!BBH", 0, 0, _SUBSYS_NFTABLES)
_RECEIVE_BYTES = 65536
_SO_SNDBUFFORCE = 32  # socket(7): beyond net.core.wmem_max, with CAP_NET_ADMIN
_SURELY_SENT = 65536
# The kernel answers before sendmsg returns: this only bounds a bug. settimeout() would poll before each call.
_TIMEOUT = struct.pack("@ll", 2, 0)


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | 0x8000, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number in network byte order, as nftables has nearly all of them."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One nftables request: NFT_MSG_ number, flags beside NLM_F_REQUEST, attributes, words for an error."""

    kind: int
    flags: int = 0
    body: bytes
    doing: str


class NetlinkError(OSError):
    """The kernel refused a transaction: `doing` says at which message, `detail` is the kernel's own text."""

    def __init__(self, number: int, *, doing: str, detail: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.doing = doing
        self.detail = detail

    @property
    def name(self) -> str:
        """`EPERM` and the like."""
        return errno.errorcode.get(self.errno or 0, str(self.errno))

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.doing}: {self.name} {self.strerror}{detail}"


class NftSocket:
    """A netlink socket for nftables; opening it raises OSError where the kernel has no netfilter netlink."""

    def __init__(self, *, closes_first: bool = False) -> None:
        """`closes_first`: with a descriptor above all others, which the kernel closes first at our death."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        if closes_first:
            self._socket = socket.socket(fileno=moved_up(self._socket.detach()))
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._lock = threading.Lock()
        self._sequence = 0
        self._largest = _SURELY_SENT

    def fileno(self) -> int:
        """The descriptor whose last holder owns the table."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The netlink port, by which the kernel and /proc/net/netlink name this socket."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket: the kernel deletes the tables it owns."""
        self._socket.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """Apply all messages or none, in one transaction; raises NetlinkError for the first refused one."""
        with self._lock:
            first = self._sequence + 1
            packets = [self._packet(0x10, NLM_F_REQUEST, _BATCH)]
            for number, message in enumerate(messages):
                # Errors are always reported; that the last message is acknowledged says all went well.
                ack = NLM_F_ACK if number == len(messages) - 1 else 0
                packets.append(self._nft_packet(message, ack))
            acknowledged = self._sequence
            packets.append(self._packet(0x11, NLM_F_REQUEST, _BATCH))
            self._send(b"".join(packets))
            failure = self._await(acknowledged)
        if failure is not None:
            sequence, number, detail = failure
            index = sequence - first - 1
            doing = messages[index].doing if 0 <= index < len(messages) else "the transaction"
            raise NetlinkError(number, doing=doing, detail=detail)

    def request(self, message: Message) -> bytes:
        """Send a request on its own and return the attributes of its answer; raises NetlinkError."""
        with self._lock:
            self._socket.send(self._nft_packet(message, 0))
            data = self._socket.recv(_RECEIVE_BYTES)
        length, kind, flags, _, _ = _HEADER.unpack_from(data)
        if kind == _NLMSG_ERROR:
            number, detail = _refusal(data[:length], flags)
            raise NetlinkError(number, doing=message.doing, detail=detail)
        return data[_HEADER.size + 4 : length]

    def dump(self, message: Message) -> list[bytes]:
        """The attributes of everything of a kind, such as all tables; raises NetlinkError."""
        asked = Message(kind=message.kind, flags=_NLM_F_DUMP, body=message.body, doing=message.doing)
        found: list[bytes] = []
        with self._lock:
            self._socket.send(self._nft_packet(asked, 0))
            while True:
                data = self._socket.recv(_RECEIVE_BYTES)
                while data:
                    length, kind, flags, _, _ = _HEADER.unpack_from(data)
                    if kind == _NLMSG_ERROR:
                        number, detail = _refusal(data[:length], flags)
                        raise NetlinkError(number, doing=message.doing, detail=detail)
                    if kind == _NLMSG_DONE:
                        return found
                    found.append(data[_HEADER.size + 4 : length])
                    data = data[length + 3 & ~3 :]

    def _send(self, batch: bytes) -> None:
        # The kernel takes a transaction whole or, above the send buffer's size, not at all.
        if len(batch) > self._largest:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(batch))
            self._largest = len(batch)
        self._socket.send(batch)

    def _nft_packet(self, message: Message, ack: int) -> bytes:
        return self._packet(
            _SUBSYS_NFTABLES << 8 | message.kind,
            NLM_F_REQUEST | message.flags | ack,
            struct.pack("!BBH", _NFPROTO_INET, 0, 0) + message.body,
        )

    def _packet(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body

    def _await(self, acknowledged: int) -> tuple[int, int, str] | None:
        """Read answers up to the acknowledgement; the first refusal as (sequence, errno, detail)."""
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            if kind != _NLMSG_ERROR:
                continue
            number, detail = _refusal(data[:length], flags)
            if number:
                self._discard()
                return sequence, number, detail
            if sequence == acknowledged:
                return None

    def _discard(self) -> None:
        """Drop what else the kernel said about a transaction that failed, so that the next starts clean."""
        try:
            while self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass


def _refusal(packet: bytes, flags: int) -> tuple[int, str]:
    """The errno of an NLMSG_ERROR (0: acknowledged) and the text of its extended acknowledgement."""
    (number,) = struct.unpack_from("=i", packet, _HEADER.size)
    offset = _HEADER.size + 4 + _HEADER.size
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        for kind, payload in attributes(packet[offset:]):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = payload.rstrip(b"\0").decode(errors="replace")
    return -number, detail


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """The attributes in `data` as (kind, payload); stops at the first that does not fit."""
    found = []
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if not 4 <= length <= len(data) - offset:
            break
        found.append((kind & 0x3FFF, data[offset + 4 : offset + length]))
        offset += length + 3 & ~3
    return found


def is_held(port: int, *, proc: Path = Path("/proc")) -> bool:
    """Whether a process of this network namespace holds the netfilter socket with this netlink port."""
    return _inode_of(port, proc) is not None


def pid_of_port(port: int, *, proc: Path = Path("/proc")) -> int | None:
    """The process that holds the nftables socket with this netlink port; None when it cannot be seen."""
    inode = _inode_of(port, proc)
    return None if inode is None else holder_of(f"socket:[{inode}]", proc=proc)


def _inode_of(port: int, proc: Path) -> str | None:
    for line in (proc / "thread-self/net/netlink").read_text().splitlines()[1:]:
        _, protocol, owner, *_, inode = line.split()
        if int(protocol) == _NETLINK_NETFILTER and int(owner) == port & 0xFFFFFFFF:
            return inode
    return None
