"""What is to be steered where, for every back end that has rules, and the names of things in them; values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from tidegate_agent.steering.exemption import Exemption
from tidegate_agent.steering.forwarded import Forwarded
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint, IPAddress

if TYPE_CHECKING:
    from tidegate_dns.address import Landing  # its module brings asyncio along, which the supervisor spares

TABLE = "tidegate"
KEEPER = "tidegate_keeper"
LEASE_SET = "alive"
STEERED4 = "steered4"
STEERED6 = "steered6"
REPLIES_CHAIN = "replies"
DNS_CHAIN = "dns"
QUERIES_CHAIN = "queries"
STEER_CHAIN = "steer"
MAX_ENDPOINTS = 65536
"""What one set may hold (I8); the default registries resolve to some hundreds."""

PROBE_ADDRESS = IPv4Address("127.0.0.74")
"""Redirected even without the lease and for exempt sockets: for the agent's probe of the real rules."""

PROBE6 = Endpoint.of("::1", 116)
"""The same over IPv6, where loopback has a single address: a port on which nothing listens."""

DNS = 53
HTTPS = 443
_LOCAL4 = IPv4Address("127.0.0.1")
_LOCAL6 = IPv6Address("::1")

NO_NAMES = Zone.of(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be steered where. Resolver ports are per resolver; `dns_tcp_port` 0 leaves TCP/53 alone."""

    port: int
    exemption: Exemption
    zone: Zone = NO_NAMES
    """The names whose questions go to the resolvers' ports."""
    dns_udp: Mapping[IPAddress, int] = field(default_factory=dict)
    dns_tcp_port: int = 0
    dns_linked: "tuple[Landing, ...]" = ()
    """Where queries to resolvers on a link arrive, over UDP and TCP: at this host's own address there."""
    dns_leaving: "tuple[Landing, ...]" = ()
    """Where former resolvers' queries arrived: what is answered there still gets to its client."""
    dns_tcp_direct_uids: tuple[int, ...] = ()
    """Users whose TCP/53 is never redirected: systemd-resolved binds to an interface and would time out."""
    forwarded: Forwarded | None = None
    """The containers behind this host's bridges; None: nobody but this host is steered."""
    connections: bool = True
    """Redirect TCP too; False leaves that to another mechanism, and connection tracking alone."""
    owned: bool = True
    """The kernel deletes what steers with its process; False where it cannot, before Linux 5.12."""


def local(resolver: IPAddress) -> IPAddress:
    """Where what is sent to `resolver` arrives instead."""
    return _LOCAL4 if resolver.version == 4 else _LOCAL6


def unscoped(address: IPAddress) -> IPAddress:
    """A packet carries no zone: `fe80::1%eth0` is matched as `fe80::1`."""
    return ip_address(address.packed)
