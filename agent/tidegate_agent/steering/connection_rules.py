"""The rules for TCP connections, those to resolvers among them; pure.

A connection comes before the question that is asked over it, so those to a resolver are redirected whatever
they will ask.
"""

from collections.abc import Iterable

from tidegate_agent.steering.observation import GoesOut
from tidegate_agent.steering.plan import (
    DNS,
    HTTPS,
    PROBE6,
    PROBE_ADDRESS,
    STEERED4,
    STEERED6,
    Plan,
    unscoped,
)
from tidegate_agent.steering.statement import (
    LeaseHeld,
    Redirect,
    RedirectTo,
    Return,
    Rule,
    SentBy,
    To,
    ToMember,
    ToPort,
    exempt_rule,
)


def steer_rules(plan: Plan) -> Iterable[Rule]:
    resolvers = [unscoped(resolver) for resolver in plan.dns_udp] if plan.dns_tcp_port else []
    yield (To(address=PROBE_ADDRESS, l4="tcp", port=HTTPS), Redirect(port=plan.port))
    yield (To(address=PROBE6.address, l4="tcp", port=PROBE6.port), Redirect(port=plan.port))
    if PROBE_ADDRESS in resolvers:
        yield (To(address=PROBE_ADDRESS, l4="tcp", port=DNS), Redirect(port=plan.dns_tcp_port))
    yield exempt_rule(plan.exemption)
    yield (LeaseHeld(), ToMember(version=4, set_name=STEERED4), Redirect(port=plan.port))
    yield (LeaseHeld(), ToMember(version=6, set_name=STEERED6), Redirect(port=plan.port))
    if resolvers:
        for uid in plan.dns_tcp_direct_uids:
            yield (SentBy(uid=uid), ToPort(l4="tcp", port=DNS), Return())
    for resolver in resolvers:
        if resolver != PROBE_ADDRESS:
            yield (
                LeaseHeld(),
                To(address=resolver, l4="tcp", port=DNS),
                Redirect(port=plan.dns_tcp_port),
            )
    for landing in plan.dns_linked:
        yield (
            LeaseHeld(),
            GoesOut(interface=landing.interface),
            To(address=unscoped(landing.resolver), l4="tcp", port=DNS),
            RedirectTo(address=unscoped(landing.address), port=landing.tcp_port),
        )
