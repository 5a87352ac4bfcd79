"""What a logged packet says of its connection: IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293); pure."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tidegate_proxy.endpoint import Endpoint

_TCP = 6
_UDP, _UDP_HEADER = bytes([17]), 8
_PORTS = struct.Struct("!HHI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A TCP segment; `sequence` is the number of its first octet of data."""

    source: Endpoint
    destination: Endpoint
    sequence: int
    data: bytes


def parse_datagram(packet: bytes) -> bytes | None:
    """What a UDP packet (RFC 768) carries, from its network header on; None for other packets."""
    if not packet:
        return None
    at, protocol = (4 * (packet[0] & 0xF), packet[9:10]) if packet[0] >> 4 == 4 else (40, packet[6:7])
    return packet[at + _UDP_HEADER :] if protocol == _UDP else None


def parse_segment(packet: bytes) -> Segment | None:
    """The segment from its network header on; None for other packets. IPv6 extension headers are not read."""
    try:
        source: IPv4Address | IPv6Address
        destination: IPv4Address | IPv6Address
        if packet[0] >> 4 == 4:
            at, protocol = 4 * (packet[0] & 0xF), packet[9]
            source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        else:
            at, protocol = 40, packet[6]
            source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        from_port, to_port, sequence = _PORTS.unpack_from(packet, at)
        data_at = at + 4 * (packet[at + 12] >> 4)
    except (IndexError, ValueError, struct.error):
        return None
    if protocol != _TCP:
        return None
    return Segment(
        source=Endpoint(source, from_port),
        destination=Endpoint(destination, to_port),
        sequence=sequence,
        data=packet[data_at:],
    )
