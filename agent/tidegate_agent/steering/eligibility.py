"""Which addresses may be steered at all (DESIGN 3, I5).

Never: loopback (but for one address of ours), link-local (cloud metadata services), multicast, unspecified,
IPv4 in IPv6 clothing, and the host's own addresses. Whether an address is the host's own is asked of the
kernel's routing table for every new address (rtnetlink(7), RTM_GETROUTE), because addresses come and go;
nothing is cached here.
"""

import socket
import struct
from ipaddress import IPv4Address

from tidegate_proxy.endpoint import IPAddress

SINKHOLE = IPv4Address("127.74.0.1")
"""What names of registries in sinkhole mode are told to have: on this host, and nobody's."""

_NETLINK_ROUTE = 0
_RTM_GETROUTE, _RTM_NEWROUTE = 26, 24
_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST, _RTN_MULTICAST = 2, 3, 4, 5
_RTA_DST = 1
_HEADER = struct.Struct("=IHHII")
# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_TYPE_OFFSET = _HEADER.size + 7
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def is_special(address: IPAddress) -> bool:
    """The address can never be a registry's: it names this host, this link or a group."""
    if address == SINKHOLE:
        return False
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.packed in (b"\xff\xff\xff\xff",))
        or (address.version == 4 and address.packed[0] == 0)
        or (address.version == 6 and address.ipv4_mapped is not None)
    )


class Routes:
    """Asks the kernel where an address would go."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 2, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def admits(self, address: IPAddress) -> bool:
        """The address may be steered."""
        return not is_special(address) and not self.is_local(address)

    def is_local(self, address: IPAddress) -> bool:
        """The address is one of this host's own, or a broadcast or group of its networks.

        An address without a route is not local: the resolver may know it before the network is up.
        """
        if address == SINKHOLE:
            return False
        packed = address.packed
        body = _ROUTE.pack(_FAMILIES[address.version], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(packed), _RTA_DST) + packed
        self._sequence += 1
        self._socket.send(
            _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, 1, self._sequence & 0xFFFFFFFF, 0) + body
        )
        answer = self._socket.recv(65536)
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind != _RTM_NEWROUTE:
            return False
        return answer[_TYPE_OFFSET] in (_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST, _RTN_MULTICAST)
