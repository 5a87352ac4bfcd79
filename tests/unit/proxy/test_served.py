"""Requests are told in batches, in order, soon, and to everybody."""

import asyncio
import time
from collections.abc import Sequence

from tidegate_proxy.http.served import Moment, Served, Tally
from tidegate_proxy.registry.answer import Cache, Kind
from tidegate_proxy.site import Site


def served(path: str = "/") -> Served:
    return Served(
        site=Site(registry="docker.io", host="registry-1.docker.io"),
        method="GET",
        path=path,
        status=200,
        cache=Cache.HIT,
        kind=Kind.MANIFEST,
        sent_bytes=1,
        received_bytes=0,
        cause=None,
    )


async def test_what_happened_is_told_in_order_soon_after() -> None:
    """O4: each with its own time."""
    told = asyncio.get_running_loop().create_future()
    tally = Tally([told.set_result])
    before = time.time()
    for number in range(3):
        tally.add(served(f"/{number}"), number / 10)
    async with asyncio.timeout(5):
        moments: Sequence[Moment] = await told

    assert [(each.path, seconds) for each, _, seconds in moments] == [("/0", 0.0), ("/1", 0.1), ("/2", 0.2)]
    assert before <= moments[0][1] <= moments[2][1] <= time.time()


async def test_what_waits_to_be_told_is_bounded() -> None:
    """I8."""
    batches = list[int]()
    tally = Tally([lambda moments: batches.append(len(moments))])
    for _ in range(1300):
        tally.add(served(), 0.0)
    tally.tell()
    tally.tell()

    assert sum(batches) == 1300
    assert max(batches) <= 512


async def test_one_observer_that_fails_does_not_silence_the_others() -> None:
    """I1."""
    reported, told = list[object](), list[Moment]()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what["exception"]))

    def fail(_: Sequence[Moment]) -> None:
        raise RuntimeError("a bug")

    tally = Tally([fail, told.extend])
    tally.add(served(), 0.0)
    tally.tell()

    assert len(told) == 1
    assert [str(error) for error in reported] == ["a bug"]


async def test_after_the_end_everything_is_told_at_once() -> None:
    """O4: what ends while the agent stops is not lost with the event loop."""
    told = list[Moment]()
    tally = Tally([told.extend])
    tally.close()
    tally.add(served(), 0.0)

    assert len(told) == 1
