"""What a back end remembers of the endpoints that it told the kernel of."""

import pytest

from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.learned import Learned
from tidegate_agent.steering.plan import MAX_ENDPOINTS
from tidegate_proxy.endpoint import Endpoint, IPAddress

A, B, OWN = (Endpoint.of(address, 443) for address in ("192.0.2.1", "192.0.2.2", "127.0.0.1"))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def learned(clock: Clock) -> Learned:
    return Learned(clock=clock)


def admits(address: IPAddress) -> bool:
    return not address.is_loopback


def take(learned: Learned, *endpoints: tuple[Endpoint, float]) -> None:
    learned.took(learned.changes(endpoints, admits))


def test_new_endpoints_are_told_once_for_the_longest_time_and_only_where_they_may_be_steered(
    learned: Learned,
) -> None:
    """I5: what must not be steered is left out silently."""
    changes = learned.changes([(A, 5), (OWN, 60), (A, 60), (A, 30), (B, 7)], admits)

    assert (changes.fresh, changes.renewed, set(changes.timed_out)) == ({A: 60, B: 7}, {}, set())
    assert learned.all() == []  # until the kernel has taken them
    learned.took(changes)
    assert learned.count() == 2
    assert learned.known([A, OWN, B]) == [A, B]


def test_a_time_is_never_shortened_nor_renewed_for_next_to_nothing(learned: Learned, clock: Clock) -> None:
    """Answers repeat often: the kernel hears of what matters."""
    take(learned, (A, 60))
    clock.now += 0.3

    assert not learned.changes([(A, 10)], admits)
    assert not learned.changes([(A, 60)], admits)
    clock.now += 1
    assert learned.changes([(A, 60)], admits).renewed == {A: 60}


def test_what_has_timed_out_is_given_back_when_room_is_short(learned: Learned, clock: Clock) -> None:
    """I8: but for what timed out only a moment ago, by a clock that may not be the kernel's."""
    many = [Endpoint.of(f"10.0.{number >> 8}.{number & 255}", 443) for number in range(1024)]
    take(learned, (A, 1), (B, 7))
    clock.now += 8
    changes = learned.changes([(each, 60) for each in many], admits)
    learned.took(changes)

    assert set(changes.timed_out) == {A}
    assert learned.known([A, B]) == [B]


def test_more_than_there_is_room_for_is_refused_and_nothing_is_forgotten(learned: Learned) -> None:
    """I8: the bound holds for both families together."""
    take(learned, (A, 60))
    many = [
        Endpoint.of(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 443)
        for number in range(MAX_ENDPOINTS)
    ]
    with pytest.raises(SteeringFailed, match=f"1 endpoints are steered already; {MAX_ENDPOINTS} more"):
        learned.changes([(each, 60) for each in many], admits)

    assert learned.all() == [A]
    take(learned, *((each, 60.0) for each in many[1:]))
    assert learned.count() == MAX_ENDPOINTS


def test_what_was_removed_is_new_again(learned: Learned) -> None:
    """N18: taken out of the kernel, and learned once more."""
    take(learned, (A, 60), (B, 60))
    learned.forget([A, OWN])

    assert learned.changes([(A, 60)], admits).fresh == {A: 60}
    learned.clear()
    assert learned.all() == []
