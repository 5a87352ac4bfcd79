"""The rules of the nft back end as values; pure.

Two tables. `tidegate` holds everything that steers; the kernel deletes it with the process that owns it, and
every rule in it but the probe's and the replies' matches only while the set `alive` holds the lease.
`tidegate_keeper` steers nothing: it goes with the supervisor and the agent, whichever ends last, and its
chains only keep connection tracking and NAT switched on, so that connections which were redirected get a
clean end after the other table is gone.

Queries over UDP are told apart by the name they ask for (docs/decisions/0014): what is not steered goes on
unchanged. The others are rewritten without connection tracking, one local port per resolver: a tracked query
would leave its 5-tuple pointing at us after our death. Over TCP the connection comes before the question, so
those to a resolver are redirected whatever they will ask. Nothing here talks to the kernel, nor knows nft's
syntax: `encoding`, `nft` and `listing` do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, assert_never

from tidegate_agent.steering.exemption import ByMark, ByUid, Exemption
from tidegate_agent.steering.observation import GoesOut, Observation
from tidegate_agent.steering.question import AsksFor, questions_of
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import IPAddress

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

_DNS = 53
_HTTPS = 443
_LOCAL4 = IPv4Address("127.0.0.1")
_LOCAL6 = IPv6Address("::1")

NO_NAMES = Zone.of(())

L4 = Literal["tcp", "udp"]


class KeyType(Enum):
    """What a set holds, in nft's words."""

    PROTOCOL = "inet_proto"
    ENDPOINT4 = "ipv4_addr . inet_service"
    ENDPOINT6 = "ipv6_addr . inet_service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The socket's mark equals `value` under `mask`."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentBy:
    """The socket belongs to this user."""

    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHeld:
    """The packet's protocol is in the lease set: TCP and UDP while the agent lives, nothing otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFlow:
    """Connection tracking sees a new flow; matching it at all is what switches tracking on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class To:
    """The packet goes to this address and port."""

    address: IPAddress
    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class From:
    """The packet comes from this address and port."""

    address: IPAddress
    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToPort:
    """The packet goes to this port."""

    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOver:
    """The packet is of another protocol."""

    l4: L4


@dataclass(frozen=True, slots=True, kw_only=True)
class NotToPort:
    """The packet goes to another port of this protocol."""

    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToMember:
    """The packet's address and TCP port are an element of a set."""

    version: Literal[4, 6]
    set_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Leave the chain: the packet goes on untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goto:
    """Go on in another chain, for good."""

    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoTrack:
    """Keep connection tracking away from the packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """NAT the connection to a port of this host's loopback address."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectTo:
    """NAT the connection to an address of this host that is not loopback."""

    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteTo:
    """Overwrite a UDP packet's destination."""

    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteFrom:
    """Overwrite a UDP packet's source."""

    address: IPAddress
    port: int


Match = Marked | SentBy | LeaseHeld | NewFlow | To | From | ToPort | NotOver | NotToPort | ToMember | AsksFor
Verdict = Return | Goto | NoTrack | Redirect | RedirectTo | RewriteTo | RewriteFrom
Statement = Match | Verdict | Observation
Rule = tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementSet:
    """A set whose elements time out; `size` 0 is unbounded."""

    name: str
    key: KeyType
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHook:
    """Where a base chain sees this host's own traffic, or another place of a packet's way."""

    type: Literal["nat", "route", "filter"]
    priority: int
    at: Literal["prerouting", "input", "forward", "output"] = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain in a hook; without one, a chain that others go to."""

    name: str
    hook: OutputHook | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of family inet; `owned` ties its life to the process that makes it."""

    name: str
    owned: bool
    sets: tuple[ElementSet, ...] = ()
    chains: tuple[Chain, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be steered where. Resolver ports are per resolver; `dns_tcp_port` 0 leaves TCP/53 alone."""

    port: int
    exemption: Exemption
    zone: Zone = NO_NAMES
    """The names whose questions go to the resolvers' ports."""
    dns_udp: Mapping[IPAddress, int] = field(default_factory=dict)
    dns_tcp_port: int = 0
    dns_linked: tuple[Landing, ...] = ()
    """Where queries to resolvers on a link arrive, over UDP and TCP: at this host's own address there."""
    dns_leaving: tuple[Landing, ...] = ()
    """Where former resolvers' queries arrived: what is answered there still gets to its client."""
    dns_tcp_direct_uids: tuple[int, ...] = ()
    """Users whose TCP/53 is never redirected: systemd-resolved binds to an interface and would time out."""
    connections: bool = True
    """Redirect TCP too; False leaves that to another mechanism, and connection tracking alone."""


def steering_table(plan: Plan) -> Table:
    """The table that steers."""
    sets = [ElementSet(name=LEASE_SET, key=KeyType.PROTOCOL)]
    connections = []
    if plan.connections:
        sets.append(ElementSet(name=STEERED4, key=KeyType.ENDPOINT4, size=MAX_ENDPOINTS))
        sets.append(ElementSet(name=STEERED6, key=KeyType.ENDPOINT6, size=MAX_ENDPOINTS))
        connections.append(
            Chain(
                name=STEER_CHAIN,
                hook=OutputHook(type="nat", priority=-110),
                rules=tuple(_steer_rules(plan)),
            )
        )
    return Table(
        name=TABLE,
        owned=True,
        sets=tuple(sets),
        # Before connection tracking (-200), so that notrack still can; a nat chain must come after it.
        chains=(
            Chain(
                name=REPLIES_CHAIN,
                hook=OutputHook(type="filter", priority=-300),
                rules=tuple(_replies_rules(plan)) if plan.dns_udp else (),
            ),
            Chain(
                name=DNS_CHAIN,
                hook=OutputHook(type="route", priority=-300),
                rules=tuple(_dns_rules(plan)) if plan.dns_udp else (),
            ),
            Chain(name=QUERIES_CHAIN, rules=tuple(_queries_rules(plan))),
            *connections,
        ),
    )


def keeper_table(name: str = KEEPER) -> Table:
    """The table that outlives the agent a little: an empty nat chain, and one rule that needs tracking."""
    return Table(
        name=name,
        owned=True,
        chains=(
            Chain(name="nat", hook=OutputHook(type="nat", priority=-110)),
            Chain(name="track", hook=OutputHook(type="filter", priority=0), rules=((NewFlow(),),)),
        ),
    )


def _replies_rules(plan: Plan) -> Iterable[Rule]:
    """The responder's answers: whatever the exemption says, for our own sockets send them.

    Without the lease, so that an answer that is under way when the lease ends still arrives. In a chain of
    type filter, because one of type route would look up the packet's route again, and its destination stays.
    """
    yield (NotOver(l4="udp"), Return())
    for resolver, port in plan.dns_udp.items():
        yield (
            From(address=_local(resolver), l4="udp", port=port),
            NoTrack(),
            RewriteFrom(address=_unscoped(resolver), port=_DNS),
        )
    for landing in (*plan.dns_linked, *plan.dns_leaving):
        yield (
            From(address=_unscoped(landing.address), l4="udp", port=landing.udp_port),
            NoTrack(),
            RewriteFrom(address=_unscoped(landing.resolver), port=_DNS),
        )


def _dns_rules(plan: Plan) -> Iterable[Rule]:
    resolvers = [(_unscoped(resolver), port) for resolver, port in plan.dns_udp.items()]
    yield (NotOver(l4="udp"), Return())
    yield (NotToPort(l4="udp", port=_DNS), Return())
    for resolver, port in resolvers:
        if resolver == PROBE_ADDRESS:
            yield _query_rule(resolver, port)
    yield exempt_rule(plan.exemption)
    for question in questions_of(plan.zone):
        yield (question, Goto(chain=QUERIES_CHAIN))


def _queries_rules(plan: Plan) -> Iterable[Rule]:
    """For the queries that may ask for a steered name."""
    for resolver, port in plan.dns_udp.items():
        if _unscoped(resolver) != PROBE_ADDRESS:
            yield (LeaseHeld(), *_query_rule(_unscoped(resolver), port))
    for landing in plan.dns_linked:
        yield (
            LeaseHeld(),
            GoesOut(interface=landing.interface),
            To(address=_unscoped(landing.resolver), l4="udp", port=_DNS),
            NoTrack(),
            RewriteTo(address=_unscoped(landing.address), port=landing.udp_port),
        )


def _query_rule(resolver: IPAddress, port: int) -> Rule:
    return (
        To(address=resolver, l4="udp", port=_DNS),
        NoTrack(),
        RewriteTo(address=_local(resolver), port=port),
    )


def _steer_rules(plan: Plan) -> Iterable[Rule]:
    resolvers = [_unscoped(resolver) for resolver in plan.dns_udp] if plan.dns_tcp_port else []
    yield (To(address=PROBE_ADDRESS, l4="tcp", port=_HTTPS), Redirect(port=plan.port))
    if PROBE_ADDRESS in resolvers:
        yield (To(address=PROBE_ADDRESS, l4="tcp", port=_DNS), Redirect(port=plan.dns_tcp_port))
    yield exempt_rule(plan.exemption)
    yield (LeaseHeld(), ToMember(version=4, set_name=STEERED4), Redirect(port=plan.port))
    yield (LeaseHeld(), ToMember(version=6, set_name=STEERED6), Redirect(port=plan.port))
    if resolvers:
        for uid in plan.dns_tcp_direct_uids:
            yield (SentBy(uid=uid), ToPort(l4="tcp", port=_DNS), Return())
    for resolver in resolvers:
        if resolver != PROBE_ADDRESS:
            yield (
                LeaseHeld(),
                To(address=resolver, l4="tcp", port=_DNS),
                Redirect(port=plan.dns_tcp_port),
            )
    for landing in plan.dns_linked:
        yield (
            LeaseHeld(),
            GoesOut(interface=landing.interface),
            To(address=_unscoped(landing.resolver), l4="tcp", port=_DNS),
            RedirectTo(address=_unscoped(landing.address), port=landing.tcp_port),
        )


def exempt_rule(exemption: Exemption) -> Rule:
    """Leave our own traffic alone."""
    match exemption:
        case ByMark(value=value, mask=mask):
            return (Marked(value=value, mask=mask), Return())
        case ByUid(uid=uid):
            return (SentBy(uid=uid), Return())
        case _:
            assert_never(exemption)


def _local(resolver: IPAddress) -> IPAddress:
    return _LOCAL4 if resolver.version == 4 else _LOCAL6


def _unscoped(address: IPAddress) -> IPAddress:
    """A packet carries no zone: `fe80::1%eth0` is matched as `fe80::1`."""
    return ip_address(address.packed)
