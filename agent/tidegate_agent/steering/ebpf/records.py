"""Keys and values of the maps as the structs of `steer.bpf.c` lay them out; pure.

Addresses and ports are in network byte order, everything else in the machine's.
"""

import functools
import struct
from ipaddress import IPv6Address
from typing import assert_never

from tidegate_agent.steering.exemption import ByMark, ByUid, Exemption
from tidegate_proxy.endpoint import Endpoint

FIRST = bytes(4)
"""The key of the only element of an array."""

NO_LEASE = bytes(8)
NEVER_ENDS = (1 << 63) - 1
EVEN_WITHOUT_LEASE = (1 << 64) - 1
"""In place of a time: also for exempt sockets."""

_SETTINGS = struct.Struct("=QIIIxxxx")
_TIME = struct.Struct("=Q")
_COOKIE = struct.Struct("=Q")
_PORT = struct.Struct("!H")
_BY_MARK, _BY_UID = 1, 2


def settings(*, netns_cookie: int, exemption: Exemption) -> bytes:
    """Whose connections are steered: those of one network namespace, but for the exempt ones."""
    match exemption:
        case ByMark(value=value, mask=mask):
            return _SETTINGS.pack(netns_cookie, _BY_MARK, value, mask)
        case ByUid(uid=uid):
            return _SETTINGS.pack(netns_cookie, _BY_UID, uid, 0)
        case _:
            assert_never(exemption)


def time_ns(until_ns: int) -> bytes:
    """A time by CLOCK_MONOTONIC."""
    return _TIME.pack(until_ns)


def endpoint(endpoint: Endpoint) -> bytes:
    """The key of a steered endpoint, in the map of its IP version."""
    key = endpoint.address.packed + _PORT.pack(endpoint.port)
    return key + bytes(-len(key) % (4 if endpoint.address.version == 4 else 8))


def redirect(*, until_ns: int, to_port: int) -> bytes:
    """Where a steered endpoint's connections go on loopback, and until when."""
    return _TIME.pack(until_ns) + _PORT.pack(to_port) + bytes(6)


def cookie(cookie: int) -> bytes:
    """The key of a connection that was redirected."""
    return _COOKIE.pack(cookie)


@functools.lru_cache(maxsize=4096)
def original(data: bytes) -> Endpoint:
    """Where a redirected connection was going."""
    address = IPv6Address(data[:16])
    (port,) = _PORT.unpack_from(data, 16)
    return Endpoint(address.ipv4_mapped or address, port)
