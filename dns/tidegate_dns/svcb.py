"""Service bindings, the types SVCB and HTTPS (RFC 9460): the addresses they hint at.

A client may connect to a hint before it has an A or AAAA record, so hints are learned like those. Nothing
here changes a record, `ech` included: who encrypts its ClientHello with it goes past the cache.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

SVCB, HTTPS = 64, 65

_IPV4HINT, _IPV6HINT = 4, 6
_PARAMETER = struct.Struct(">HH")


def hints(data: bytes) -> list[IPv4Address | IPv6Address]:
    """The addresses in a record's data; what is broken hints at nothing."""
    offset = _behind_target(data)
    found: list[IPv4Address | IPv6Address] = []
    while offset < len(data):
        if offset + _PARAMETER.size > len(data):
            return []
        key, length = _PARAMETER.unpack_from(data, offset)
        offset += _PARAMETER.size
        value = data[offset : offset + length]
        offset += length
        if offset > len(data):
            return []
        if key == _IPV4HINT and length % 4 == 0:
            found += [IPv4Address(value[place : place + 4]) for place in range(0, length, 4)]
        elif key == _IPV6HINT and length % 16 == 0:
            found += [IPv6Address(value[place : place + 16]) for place in range(0, length, 16)]
    return found


def _behind_target(data: bytes) -> int:
    """Behind the priority and the target's name, which is never compressed (section 2.2)."""
    offset = 2
    while offset < len(data) and data[offset]:
        offset += 1 + data[offset]
    return offset + 1
