"""What has to go: the limits, a tenth of room, the oldest first. Tables and hypothesis."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.catalogue import Entry
from tidegate_proxy.storage.eviction import Excess, Occupancy, chosen, excess
from tidegate_proxy.storage.limits import Limits

LIMITS = Limits(max_size_bytes=1000, min_free_bytes=500)


def occupancy(stored: int = 0, partial: int = 0, free: int = 10_000, disk: int = 100_000) -> Occupancy:
    return Occupancy(stored_bytes=stored, partial_bytes=partial, free_bytes=free, disk_bytes=disk)


def entries(*sizes: int) -> list[Entry]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Entry(
            digest=Digest.of(str(at).encode()),
            size_bytes=size,
            last_use=start + timedelta(hours=at),
            manifest=False,
        )
        for at, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (occupancy(stored=1000), Excess()),
        (occupancy(stored=1001), Excess(must=1, should=101)),
        (occupancy(stored=600, partial=401), Excess(must=1, should=101)),
        (occupancy(free=500), Excess()),
        (occupancy(free=499), Excess(must=1, should=51)),
        (occupancy(stored=1300, free=100), Excess(must=400, should=450)),
        (occupancy(stored=1400, free=400), Excess(must=400, should=500)),
    ],
)
def test_a_limit_that_is_passed_asks_for_a_tenth_more(now: Occupancy, due: Excess) -> None:
    """C14: down to 90 % of max_size and of the free-space watermark; partial files count."""
    assert excess(LIMITS, now) == due


def test_a_default_watermark_yields_on_a_small_file_system() -> None:
    """C14: 5 GiB free on a disk of 4 GiB is a cache that keeps nothing; a value of one's own is kept."""
    given_by_default = Limits(max_size_bytes=1000, min_free_bytes=500, yields=True)

    assert excess(given_by_default, occupancy(free=300, disk=2000)) == Excess()
    assert excess(given_by_default, occupancy(free=199, disk=2000)) == Excess(must=1, should=21)
    assert excess(given_by_default, occupancy(free=499)) == Excess(must=1, should=51)
    assert excess(LIMITS, occupancy(free=300, disk=2000)) == Excess(must=200, should=250)


@pytest.mark.parametrize(
    ("sizes", "due", "go"),
    [
        ((50, 50, 50, 50), Excess(must=1, should=101), 3),
        ((50, 50, 50, 50), Excess(), 0),
        (
            (30, 900),
            Excess(must=20, should=120),
            1,
        ),  # the large one is all that is left, and within the limit
        ((900, 30), Excess(must=20, should=120), 1),
        ((10, 990), Excess(must=20, should=120), 2),
        ((10,), Excess(must=20, should=120), 1),
        ((), Excess(must=20, should=120), 0),
    ],
)
def test_the_oldest_go_until_it_is_enough(sizes: tuple[int, ...], due: Excess, go: int) -> None:
    """C14: what has to go goes; for the tenth nothing goes that is larger than it."""
    oldest = entries(*sizes)

    assert chosen(oldest, due, slack_bytes=100) == oldest[:go]


@given(
    st.lists(st.integers(1, 400), max_size=30),
    st.integers(0, 500),
    st.integers(0, 3000),
)
def test_what_is_left_is_within_the_limits_and_no_more_went_than_needed(
    sizes: list[int], partial: int, free: int
) -> None:
    """C14: for all sizes: the limits hold afterwards, or nothing is left; the last to go was needed."""
    now = occupancy(stored=sum(sizes), partial=partial, free=free)
    due = excess(LIMITS, now)
    oldest = entries(*sizes)
    victims = chosen(oldest, due, slack_bytes=due.should - due.must)
    gone = sum(each.size_bytes for each in victims)

    assert victims == oldest[: len(victims)]
    kept_within = sum(sizes) - gone + partial <= 1000 and free + gone >= 500
    assert kept_within or len(victims) == len(oldest)
    if victims:
        assert gone - victims[-1].size_bytes < due.should
