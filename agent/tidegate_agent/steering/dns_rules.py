"""The rules for DNS over UDP; pure.

Queries are told apart by the name they ask for (docs/decisions/0014): what is not steered goes on unchanged.
The others are rewritten without connection tracking, one local port per resolver: a tracked query would leave
its 5-tuple pointing at us after our death. DNS over TCP is a connection: see `connection_rules`.
"""

from collections.abc import Iterable

from tidegate_agent.steering.observation import GoesOut
from tidegate_agent.steering.plan import DNS, PROBE_ADDRESS, QUERIES_CHAIN, Plan, local, unscoped
from tidegate_agent.steering.question import questions_of
from tidegate_agent.steering.statement import (
    From,
    Goto,
    LeaseHeld,
    NotOver,
    NoTrack,
    NotToPort,
    Return,
    RewriteFrom,
    RewriteTo,
    Rule,
    To,
    exempt_rule,
)
from tidegate_proxy.endpoint import IPAddress


def replies_rules(plan: Plan) -> Iterable[Rule]:
    """The responder's answers: whatever the exemption says, for our own sockets send them.

    Without the lease, so that an answer that is under way when the lease ends still arrives. In a chain of
    type filter, because one of type route would look up the packet's route again, and its destination stays.
    """
    yield (NotOver(l4="udp"), Return())
    for resolver, port in plan.dns_udp.items():
        yield (
            From(address=local(resolver), l4="udp", port=port),
            NoTrack(),
            RewriteFrom(address=unscoped(resolver), port=DNS),
        )
    for landing in (*plan.dns_linked, *plan.dns_leaving):
        yield (
            From(address=unscoped(landing.address), l4="udp", port=landing.udp_port),
            NoTrack(),
            RewriteFrom(address=unscoped(landing.resolver), port=DNS),
        )


def dns_rules(plan: Plan) -> Iterable[Rule]:
    resolvers = [(unscoped(resolver), port) for resolver, port in plan.dns_udp.items()]
    yield (NotOver(l4="udp"), Return())
    yield (NotToPort(l4="udp", port=DNS), Return())
    for resolver, port in resolvers:
        if resolver == PROBE_ADDRESS:
            yield _query_rule(resolver, port)
    yield exempt_rule(plan.exemption)
    for question in questions_of(plan.zone):
        yield (question, Goto(chain=QUERIES_CHAIN))


def queries_rules(plan: Plan) -> Iterable[Rule]:
    """For the queries that may ask for a steered name."""
    for resolver, port in plan.dns_udp.items():
        if unscoped(resolver) != PROBE_ADDRESS:
            yield (LeaseHeld(), *_query_rule(unscoped(resolver), port))
    for landing in plan.dns_linked:
        yield (
            LeaseHeld(),
            GoesOut(interface=landing.interface),
            To(address=unscoped(landing.resolver), l4="udp", port=DNS),
            NoTrack(),
            RewriteTo(address=unscoped(landing.address), port=landing.udp_port),
        )


def _query_rule(resolver: IPAddress, port: int) -> Rule:
    return (
        To(address=resolver, l4="udp", port=DNS),
        NoTrack(),
        RewriteTo(address=local(resolver), port=port),
    )
