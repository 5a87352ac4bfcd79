"""The configured host names, resolved ahead: clients with a cached answer are steered too (DESIGN 4).

Wildcards cannot be resolved ahead; their addresses are learned when somebody asks.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from tidegate_agent.steering.backend import SteeringFailed
from tidegate_dns.address import LearnedAddress
from tidegate_dns.lookup import Lookup, NameNotFound, ResolverUnreachable

_SOONEST_S = 5.0
_LATEST_S = 300.0
_RETRY_S = 5.0
_LONGEST_RETRY_S = 60.0
_AT_ONCE = 4


async def keep_names_steered(
    names: Iterable[str],
    *,
    lookup: Lookup,
    learn: Callable[[str, Sequence[LearnedAddress]], None],
    failed: Callable[[str, str], None],
) -> None:
    """Look each name up now and before its records run out, until cancelled."""
    turn = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(_keep_steered(name, turn, lookup, learn, failed), name=f"keep {name} steered")


async def _keep_steered(
    name: str,
    turn: asyncio.Semaphore,
    lookup: Lookup,
    learn: Callable[[str, Sequence[LearnedAddress]], None],
    failed: Callable[[str, str], None],
) -> None:
    told = ""
    retry_s = _RETRY_S
    while True:
        try:
            async with turn:
                addresses = await lookup.addresses(name)
            learn(name, addresses)
            pause_s = min(max(min(found.ttl_s for found in addresses), _SOONEST_S), _LATEST_S)
            told = ""
            retry_s = _RETRY_S
        except (NameNotFound, ResolverUnreachable, SteeringFailed) as error:
            if error.cause != told:
                failed(name, error.cause)
                told = error.cause
            pause_s = retry_s
            # A name that does not exist is asked for ever more rarely; a resolver may be back any moment.
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S) if isinstance(error, NameNotFound) else _RETRY_S
        await asyncio.sleep(pause_s)
