"""What answers say of rate limits, and what follows."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tidegate_proxy.upstreams.rate_limit import LONGEST_RETRY_AFTER_S, RateLimit, rate_limit, retry_after_s
from tidegate_proxy.upstreams.rate_limits import RateLimits

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
HUB = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (HUB, RateLimit(remaining=76, limit=100, window_s=21600)),
        ({"RateLimit-Remaining": "0", "RateLimit-Limit": "50"}, RateLimit(remaining=0, limit=50)),
        ({"RateLimit-Remaining": " 7 , 3;w=1"}, RateLimit(remaining=7)),
        (
            {"RateLimit": '"default";r=30;t=5', "RateLimit-Policy": '"default";q=100;w=60'},
            RateLimit(remaining=30, limit=100, window_s=60),
        ),
        ({"RateLimit": '"a";r=1, "b";r=2'}, RateLimit(remaining=1)),
        ({"RateLimit-Remaining": "many"}, None),
        ({"RateLimit-Remaining": "-1"}, None),
        ({"RateLimit": "x"}, None),
        ({}, None),
    ],
)
def test_what_is_left_is_read_in_each_form(headers: dict[str, str], expected: RateLimit | None) -> None:
    """C19: Docker Hub's fields, and the IETF drafts'."""
    assert rate_limit(CIMultiDict(headers)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("Tue, 01 Dec 2026 12:00:10 GMT", 10.0),
        ("Tue, 01 Dec 2026 11:00:00 GMT", 0.0),
        ("99999999999", LONGEST_RETRY_AFTER_S),
        ("Fri, 31 Dec 2999 12:00:10 GMT", LONGEST_RETRY_AFTER_S),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_when_to_ask_again_is_read_and_bounded(text: str, expected: float | None) -> None:
    """C19, I8: RFC 9110, 10.2.3, seconds or a date."""
    assert retry_after_s(CIMultiDict({"Retry-After": text}), now=NOW) == expected


@given(st.dictionaries(st.sampled_from([*HUB, "RateLimit", "RateLimit-Policy", "Retry-After"]), st.text()))
def test_no_header_field_breaks_the_reading(headers: dict[str, str]) -> None:
    """Whatever a registry sends, pulls go on."""
    fields = CIMultiDict(headers)

    rate_limit(fields)
    assert (retry_after_s(fields, now=NOW) or 0.0) <= LONGEST_RETRY_AFTER_S


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)


def told(limits: RateLimits, status: int, headers: dict[str, str], name: str = "") -> None:
    limits.learn("docker.io", name, status, CIMultiDict(headers))


def test_a_registry_that_named_a_time_is_not_asked_before() -> None:
    """C19: for whoever asks in that name; a later answer ends it."""
    clock = Clock()
    limits = RateLimits(clock)
    told(limits, 429, {"Retry-After": "60"})
    waits = [limits.must_wait("docker.io", ""), limits.must_wait("docker.io", "robot")]
    clock.later(seconds=61)
    waits.append(limits.must_wait("docker.io", ""))
    told(limits, 429, {"Retry-After": "60"})
    told(limits, 200, {})
    waits.append(limits.must_wait("docker.io", ""))

    assert waits == [True, False, False, False]


def test_a_clock_that_is_stepped_back_keeps_nobody_waiting() -> None:
    """C19, I1: what was learned in the future is not believed."""
    clock = Clock()
    limits = RateLimits(clock)
    told(limits, 429, {"Retry-After": "60", "ratelimit-remaining": "0;w=60", "ratelimit-limit": "9;w=60"})
    clock.later(days=-1)

    assert not limits.must_wait("docker.io", "")
    assert not limits.is_scarce("docker.io", "")


@pytest.mark.parametrize(("remaining", "scarce"), [(100, False), (6, False), (5, True), (0, True)])
def test_the_last_part_of_a_limit_is_kept(remaining: int, scarce: bool) -> None:
    """C19: for what is not cached at all; until the window has passed."""
    clock = Clock()
    limits = RateLimits(clock)
    told(limits, 200, {"ratelimit-limit": "100;w=3600", "ratelimit-remaining": f"{remaining};w=3600"})
    before = limits.is_scarce("docker.io", "")
    clock.later(hours=2)

    assert (before, limits.is_scarce("docker.io", "")) == (scarce, False)


def test_status_knows_each_name_and_metrics_the_least_that_is_left() -> None:
    """C19: per registry and credential; how much is left stands after a 429 that does not say."""
    limits = RateLimits(Clock())
    told(limits, 200, HUB, name="robot")
    told(limits, 200, {"ratelimit-remaining": "3;w=21600"})
    told(limits, 429, {})

    assert {(seen.name, seen.limit.remaining if seen.limit else None) for seen in limits.all()} == {
        ("robot", 76),
        ("", 3),
    }
    assert limits.remaining() == {"docker.io": 3}


def test_however_many_registries_there_are_memory_is_bounded() -> None:
    """I8."""
    limits = RateLimits(Clock())
    for number in range(1000):
        limits.learn(f"{number}.example", "", 200, CIMultiDict(HUB))

    assert len(limits.all()) == 256
    assert limits.all()[-1].registry == "999.example"
