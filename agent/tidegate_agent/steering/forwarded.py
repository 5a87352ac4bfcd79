"""The chains for containers behind this host's bridges (N21); pure.

A connection to a steered address that comes in by one of these bridges, from one of its own networks, is
redirected: it then ends at this host, where the host's firewall may have a word. The redirection is logged
and, behind every filter, the arrival, so that whoever listens knows of a firewall that drops it.

What a resolver of this host answers a container is read on its way, never held up: the container asks whom it
always asked. All of it needs the lease, and goes with the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from tidegate_agent.steering.observation import CameIn, FromNetwork, GoesOut, Log, Redirected
from tidegate_agent.steering.question import questions_of
from tidegate_agent.steering.statement import (
    From,
    LeaseHeld,
    NewFlow,
    NotOver,
    Redirect,
    Return,
    Rule,
    ToMember,
    ToPort,
)
from tidegate_agent.steering.table import Chain, OutputHook
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import IPAddress

SENT = "tidegate sent"
ARRIVED = "tidegate arrived"
ANSWERED = "tidegate answered"
"""The prefixes of what is logged."""

_STEERED = {4: "steered4", 6: "steered6"}
_DNS = 53
_BEFORE_DSTNAT = -110
_BEHIND_FILTERS = 200
_FILTER = 0
_HEADERS_BYTES = 80
_ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedBridge:
    """A bridge by which containers come, and the networks that are theirs."""

    interface: str
    networks: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """Whose connections are redirected, whose answers are read, and who is told."""

    bridges: tuple[ForwardedBridge, ...] = ()
    resolvers: tuple[IPAddress, ...] = ()
    group: int = 0


def forwarded_chains(forwarded: Forwarded, *, port: int, zone: Zone) -> tuple[Chain, ...]:
    """The chains, with rules for each bridge; `port` is where redirected connections arrive."""
    bridges = forwarded.bridges
    return (
        Chain(
            name="from_bridges",
            hook=OutputHook(type="nat", priority=_BEFORE_DSTNAT, at="prerouting"),
            rules=tuple(_redirects(forwarded, port)) if bridges else (),
        ),
        Chain(
            name="arrivals",
            hook=OutputHook(type="filter", priority=_BEHIND_FILTERS, at="input"),
            rules=tuple(_arrivals(forwarded, port)) if bridges else (),
        ),
        Chain(
            name="to_bridges",
            hook=OutputHook(type="filter", priority=_FILTER, at="forward"),
            rules=tuple(_answers(forwarded, zone)) if bridges else (),
        ),
    )


def _redirects(forwarded: Forwarded, port: int) -> Iterable[Rule]:
    for bridge in forwarded.bridges:
        for network in bridge.networks:
            yield (
                LeaseHeld(),
                CameIn(interface=bridge.interface),
                FromNetwork(network=network),
                ToMember(version=network.version, set_name=_STEERED[network.version]),
                Log(group=forwarded.group, prefix=SENT, copied_bytes=_HEADERS_BYTES),
                Redirect(port=port),
            )


def _arrivals(forwarded: Forwarded, port: int) -> Iterable[Rule]:
    yield (NotOver(l4="tcp"), Return())
    for bridge in forwarded.bridges:
        yield (
            CameIn(interface=bridge.interface),
            ToPort(l4="tcp", port=port),
            NewFlow(),
            Redirected(),
            Log(group=forwarded.group, prefix=ARRIVED, copied_bytes=_HEADERS_BYTES),
        )


def _answers(forwarded: Forwarded, zone: Zone) -> Iterable[Rule]:
    yield (NotOver(l4="udp"), Return())
    for bridge in forwarded.bridges:
        for resolver in forwarded.resolvers:
            for question in questions_of(zone):
                yield (
                    LeaseHeld(),
                    GoesOut(interface=bridge.interface),
                    From(address=resolver, l4="udp", port=_DNS),
                    question,
                    Log(group=forwarded.group, prefix=ANSWERED, copied_bytes=_ANSWER_BYTES),
                )
