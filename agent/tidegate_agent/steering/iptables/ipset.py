"""Sets that iptables rules match, as netlink requests (linux/netfilter/ipset/ip_set.h); pure.

Elements time out in whole seconds: a lease is rounded down, whatever is steered up. Two kinds of sets: what
is steered, an address and a TCP port each; and the lease, the two halves of all addresses, so that any
packet's destination is in it while it is held and in none when it has timed out.
"""

import math
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidegate_agent.steering.netlink import attribute, nest, text
from tidegate_agent.steering.nfnetlink import Request
from tidegate_agent.steering.plan import MAX_ENDPOINTS
from tidegate_proxy.endpoint import Endpoint

ENOSUCHTYPE = 4098
"""The kernel has no such type of set: a module is missing (IPSET_ERR_FIND_TYPE)."""

_SUBSYSTEM = 6
_CREATE, _DESTROY, _FLUSH, _ADD, _DEL = 2, 3, 4, 9, 10
_PROTOCOL = attribute(1, b"\x06")
_NET_BYTE_ORDER = 0x4000
_LONGEST_S = 2_147_483  # IPSET_MAX_TIMEOUT
_PER_REQUEST = 500
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FAMILY_WORDS = {4: "inet", 6: "inet6"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IpSet:
    """A set for one IP version."""

    name: str
    type: str
    version: int
    max_elements: int

    def __str__(self) -> str:
        family = _FAMILY_WORDS[self.version]
        return f"create {self.name} {self.type} family {family} maxelem {self.max_elements} timeout 0"


STEERED = {
    version: IpSet(
        name=f"tidegate_steered{version}",
        type="hash:ip,port",
        version=version,
        max_elements=MAX_ENDPOINTS,
    )
    for version in (4, 6)
}
LEASE = {
    version: IpSet(name=f"tidegate_alive{version}", type="hash:net", version=version, max_elements=8)
    for version in (4, 6)
}


def create(ip_set: IpSet) -> Request:
    """Make the set; one of the same kind that is there is taken as it is."""
    return _request(
        _CREATE,
        ip_set.name,
        text(3, ip_set.type)
        + attribute(4, b"\x01")  # a revision that every kernel since 3.0 knows
        + attribute(5, bytes([_FAMILIES[ip_set.version]]))
        + nest(7, _u32(6, 0), _u32(19, ip_set.max_elements)),
        doing=f"creating set {ip_set.name} of type {ip_set.type}",
    )


def flush(ip_set: IpSet) -> Request:
    """Take every element out."""
    return _request(_FLUSH, ip_set.name, doing=f"flushing set {ip_set.name}")


def destroy(ip_set: IpSet) -> Request:
    """Take the set away, when no rule matches it any more."""
    return _request(_DESTROY, ip_set.name, doing=f"destroying set {ip_set.name}")


def lease(version: int, lease_s: float) -> Request:
    """Hold the lease for that long from now, whatever is left of it; never longer."""
    timeout_s = max(1, math.floor(lease_s))
    halves = [_half(version, first) + _u32(6, timeout_s) for first in (0, 0x80)]
    return _change(_ADD, LEASE[version].name, halves)


def add(endpoints: Iterable[tuple[Endpoint, float]]) -> list[Request]:
    """Steer each for so many seconds, whether it is in its set or not."""
    return _changes(_ADD, endpoints)


def remove(endpoints: Iterable[Endpoint]) -> list[Request]:
    """Take these out; those that timed out meanwhile are no error."""
    return _changes(_DEL, ((endpoint, 1.0) for endpoint in endpoints))


def _changes(command: int, endpoints: Iterable[tuple[Endpoint, float]]) -> list[Request]:
    packed: dict[int, list[bytes]] = {4: [], 6: []}
    for endpoint, timeout_s in endpoints:
        seconds = min(_LONGEST_S, max(1, math.ceil(timeout_s)))
        packed[endpoint.address.version].append(_element(endpoint) + _u32(6, seconds))
    return [
        _change(command, STEERED[version].name, elements[start : start + _PER_REQUEST])
        for version, elements in packed.items()
        for start in range(0, len(elements), _PER_REQUEST)
    ]


def _element(endpoint: Endpoint) -> bytes:
    return (
        _address(endpoint.address.packed)
        + attribute(4 | _NET_BYTE_ORDER, struct.pack("!H", endpoint.port))
        + attribute(7, bytes([socket.IPPROTO_TCP]))
    )


def _half(version: int, first_octet: int) -> bytes:
    return _address(bytes([first_octet]) + bytes(3 if version == 4 else 15)) + attribute(3, b"\x01")


def _address(packed: bytes) -> bytes:
    return nest(1, attribute((1 if len(packed) == 4 else 2) | _NET_BYTE_ORDER, packed))


def _change(command: int, name: str, elements: Sequence[bytes]) -> Request:
    # Without NLM_F_EXCL, what is there is renewed and what is not there is not missed.
    listed = nest(8, *(nest(7, element) for element in elements))
    return _request(command, name, _u32(9, 0) + listed, doing=f"changing set {name}")


def _request(command: int, name: str, more: bytes = b"", *, doing: str) -> Request:
    return Request(subsystem=_SUBSYSTEM, command=command, body=_PROTOCOL + text(2, name) + more, doing=doing)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind | _NET_BYTE_ORDER, struct.pack("!I", value))
