"""The rules of the nft back end as values; pure.

Two tables. `tidegate` holds everything that steers; the kernel deletes it with the process that owns it, and
every rule in it but the probe's and the replies' matches only while the set `alive` holds the lease.
`tidegate_keeper` steers nothing: it goes with the supervisor and the agent, whichever ends last, and its
chains only keep connection tracking and NAT switched on, so that connections which were redirected get a
clean end after the other table is gone.

Their rules are in `dns_rules` and `connection_rules`. Nothing here talks to the kernel, nor knows nft's
syntax: `encoding`, `nft` and `listing` do.
"""

from tidegate_agent.steering.connection_rules import steer_rules
from tidegate_agent.steering.dns_rules import dns_rules, queries_rules, replies_rules
from tidegate_agent.steering.forwarded import forwarded_chains
from tidegate_agent.steering.plan import (
    DNS_CHAIN,
    KEEPER,
    LEASE_SET,
    MAX_ENDPOINTS,
    PROBE6,
    PROBE_ADDRESS,
    QUERIES_CHAIN,
    REPLIES_CHAIN,
    STEER_CHAIN,
    STEERED4,
    STEERED6,
    TABLE,
    Plan,
)
from tidegate_agent.steering.statement import NewFlow
from tidegate_agent.steering.table import Chain, ElementSet, KeyType, OutputHook, Table

__all__ = ["MAX_ENDPOINTS", "PROBE6", "PROBE_ADDRESS", "TABLE", "Plan", "keeper_table", "steering_table"]


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
                rules=tuple(steer_rules(plan)),
            )
        )
    if plan.connections and plan.forwarded is not None:
        connections += forwarded_chains(plan.forwarded, port=plan.port, zone=plan.zone)
    return Table(
        name=TABLE,
        owned=plan.owned,
        sets=tuple(sets),
        # Before connection tracking (-200), so that notrack still can; a nat chain must come after it.
        chains=(
            Chain(
                name=REPLIES_CHAIN,
                hook=OutputHook(type="filter", priority=-300),
                rules=tuple(replies_rules(plan)) if plan.dns_udp else (),
            ),
            Chain(
                name=DNS_CHAIN,
                hook=OutputHook(type="route", priority=-300),
                rules=tuple(dns_rules(plan)) if plan.dns_udp else (),
            ),
            Chain(name=QUERIES_CHAIN, rules=tuple(queries_rules(plan))),
            *connections,
        ),
    )


def keeper_table(name: str = KEEPER, *, owned: bool = True) -> Table:
    """The table that outlives the agent a little: a nat chain, with one rule that needs tracking.

    What a nat chain says is asked of a connection's first packet only: there are two of these tables, and no
    other packet pays for them.
    """
    return Table(
        name=name,
        owned=owned,
        chains=(Chain(name="nat", hook=OutputHook(type="nat", priority=-110), rules=((NewFlow(),),)),),
    )
