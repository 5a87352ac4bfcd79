"""Copies of packets that rules log, one at a time (linux/netfilter/nfnetlink_log.h).

A group has one listener in each network namespace; without one its packets are copied nowhere. Listening
delays no packet and loses none: what is not read in time is forgotten. What a packet means is not known here.
"""

import errno
import socket
import struct
from dataclasses import dataclass

from tidegate_agent.steering.netlink import attribute, attributes

FIRST_GROUP = 7474
_GROUPS = 16

_NETLINK_NETFILTER = 12
_SUBSYS_LOG = 4
_MSG_PACKET, _MSG_CONFIG = 0, 1
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLMSG_ERROR = 2
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_CMD_BIND = 1
_COPY_PACKET = 2
_PAYLOAD, _PREFIX = 9, 10
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct("!BBH")  # family, version, group
_MOST_BYTES = 0xFFFF
_BUFFER_BYTES = 1 << 20
_TIMEOUT = struct.pack("@ll", 2, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A packet from its network header on, as far as its rule had it copied, and that rule's prefix."""

    prefix: str
    packet: bytes


def parse_logged(data: bytes) -> list[Logged]:
    """Every packet of a datagram of messages; what is none is left out."""
    found = []
    offset = 0
    while offset + _HEADER.size + _NFGEN.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            break
        if kind == _SUBSYS_LOG << 8 | _MSG_PACKET:
            told = dict(attributes(data[offset + _HEADER.size + _NFGEN.size : offset + length]))
            prefix = told.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
            found.append(Logged(prefix=prefix, packet=told.get(_PAYLOAD, b"")))
        offset += length + 3 & ~3
    return found


class LogGroup:
    """A listener to a group of its own; raises OSError where the kernel has none or leave is missing."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self.group = self._bind()
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Logged]:
        """What has come since the last time; empty when nothing has."""
        try:
            return parse_logged(self._socket.recv(1 << 17))
        except OSError:  # nothing there, or too much came at once and is lost
            return []

    def close(self) -> None:
        """Stop listening: the kernel forgets the group."""
        self._socket.close()

    def _bind(self) -> int:
        for group in range(FIRST_GROUP, FIRST_GROUP + _GROUPS):
            refused = self._configure(group, attribute(_CFG_CMD, bytes([_CMD_BIND])))
            if not refused:
                break
            if refused not in (errno.EBUSY, errno.EPERM):  # EPERM: another's, or no right to any
                raise OSError(refused, f"NFLOG group {group} cannot be listened to")
        else:
            raise OSError(refused, f"no NFLOG group from {FIRST_GROUP} on can be listened to")
        mode = struct.pack("!IBx", _MOST_BYTES, _COPY_PACKET)
        at_once = attribute(_CFG_MODE, mode) + attribute(_CFG_QTHRESH, struct.pack("!I", 1))
        if refused := self._configure(group, at_once):
            raise OSError(refused, f"NFLOG group {group} cannot be set up")
        return group

    def _configure(self, group: int, settings: bytes) -> int:
        """Set the group up; the errno of a refusal, or 0."""
        body = _NFGEN.pack(socket.AF_UNSPEC, 0, group) + settings
        kind, flags = _SUBSYS_LOG << 8 | _MSG_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            answer = self._socket.recv(8192)
            if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
                return -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
