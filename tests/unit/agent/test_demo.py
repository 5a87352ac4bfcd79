"""The demo: without a checkout it says what to type; a scene passes only when all its witnesses agree."""

import asyncio
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.demo import evidence
from lab.demo.__main__ import SIGNALS, Interruption, Stopped
from lab.demo.evidence import Cache, Claim, Origin, Remains, Wanted
from tidegate_agent.demo import play
from tidegate_core.errors import TidegateError

WANTED = Wanted(blobs=3, size_bytes=1000)
SENT_ALL = Origin(connections=4, requests=12, tag_checks=1, blobs=3, sent_bytes=1100)
ASKED = Origin(connections=1, requests=3, tag_checks=1, blobs=0, sent_bytes=0)
NOTHING = Origin(connections=0, requests=0, tag_checks=0, blobs=0, sent_bytes=0)
STORED = Cache(hits=0, misses=4, stale=0, saved_bytes=0, stored_bytes=1100)
SERVED = Cache(hits=4, misses=0, stale=0, saved_bytes=1100, stored_bytes=1100)
STALE = replace(SERVED, stale=1)
GONE = Remains(rules=(), processes=(), status_answers=False)


def hold(claims: Iterable[Claim]) -> bool:
    return all(claim.holds for claim in claims)


def test_without_a_checkout_it_says_that_it_needs_one_and_what_to_type(tmp_path: Path) -> None:
    """Issue 3, 6: the package is installed without the lab."""
    with pytest.raises(TidegateError) as raised:
        play([], tests=tmp_path)

    assert "only the source checkout has" in raised.value.cause
    assert "script/demo" in raised.value.next_step


def test_without_the_labs_packages_it_names_them_and_what_to_type() -> None:
    """The checkout is there, and was installed for the agent alone."""
    with pytest.raises(TidegateError) as raised:
        play([], needs=["json", "a_module_that_nobody_has"])

    assert raised.value.cause.endswith("not installed: a_module_that_nobody_has")
    assert raised.value.next_step.endswith("/script/demo")


def test_a_signal_ends_the_demo_also_out_of_an_asyncio_callback() -> None:
    """Issue 3, 6: SIGTERM arrives while pyroute2 runs its loop, which keeps most exceptions to itself."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interruption = Interruption()
    loop = asyncio.new_event_loop()
    try:
        loop.call_soon(interruption.catch, signal.SIGTERM, None)
        with pytest.raises(Stopped) as at_once:
            loop.run_forever()
        with pytest.raises(Stopped) as later:
            interruption.check()
    finally:
        loop.close()
        for number, handler in before.items():
            signal.signal(number, handler)

    assert (at_once.value.number, later.value.number) == (signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize(
    ("steering", "hosts", "rules", "holds"),
    [(True, 12, 6, True), (False, 12, 6, False), (True, 0, 6, False), (True, 12, 0, False)],
)
def test_started_means_steering_with_rules_in_the_kernel(
    steering: bool, hosts: int, rules: int, holds: bool
) -> None:
    assert hold(evidence.started(steering=steering, hosts=hosts, rules=rules)) is holds


@pytest.mark.parametrize(
    ("origin", "cache", "holds"),
    [
        (SENT_ALL, STORED, True),
        (replace(SENT_ALL, blobs=2), STORED, False),
        (replace(SENT_ALL, blobs=4), STORED, False),
        (replace(SENT_ALL, sent_bytes=999), STORED, False),
        (SENT_ALL, replace(STORED, misses=0), False),
        (SENT_ALL, replace(STORED, hits=1), False),
        (SENT_ALL, replace(STORED, stored_bytes=999), False),
    ],
)
def test_a_first_pull_comes_from_the_registry_once_and_is_stored(
    origin: Origin, cache: Cache, holds: bool
) -> None:
    assert hold(evidence.first_pull(WANTED, origin, cache)) is holds


@pytest.mark.parametrize(
    ("origin", "cache", "holds"),
    [
        (ASKED, SERVED, True),
        (NOTHING, SERVED, False),
        (replace(ASKED, tag_checks=2), SERVED, False),
        (replace(ASKED, sent_bytes=1), SERVED, False),
        (ASKED, replace(SERVED, misses=1), False),
        (ASKED, replace(SERVED, saved_bytes=999), False),
    ],
)
def test_a_second_pull_costs_one_question_and_no_content(origin: Origin, cache: Cache, holds: bool) -> None:
    assert hold(evidence.second_pull(WANTED, origin, cache)) is holds


@pytest.mark.parametrize(
    ("other_node", "origin", "cache", "holds"),
    [
        ("unreachable", NOTHING, STALE, True),
        ("", NOTHING, STALE, False),
        ("unreachable", replace(NOTHING, connections=1), STALE, False),
        ("unreachable", replace(NOTHING, requests=1), STALE, False),
        ("unreachable", NOTHING, SERVED, False),
        ("unreachable", NOTHING, replace(STALE, misses=1), False),
    ],
)
def test_an_offline_pull_reaches_nobody_while_another_node_cannot_pull(
    other_node: str, origin: Origin, cache: Cache, holds: bool
) -> None:
    assert hold(evidence.offline_pull(WANTED, origin, cache, other_node=other_node)) is holds


@pytest.mark.parametrize(
    ("remains", "holds"),
    [
        (GONE, True),
        (replace(GONE, rules=("redirect to :8443",)), False),
        (replace(GONE, processes=("tidegate agent",)), False),
        (replace(GONE, status_answers=True), False),
    ],
)
def test_killed_means_no_rule_no_process_and_no_answer(remains: Remains, holds: bool) -> None:
    assert hold(evidence.killed(remains, gone_s=0.03)) is holds


@pytest.mark.parametrize(
    ("origin", "holds"), [(SENT_ALL, True), (ASKED, False), (replace(SENT_ALL, sent_bytes=999), False)]
)
def test_a_direct_pull_comes_from_the_registry_again(origin: Origin, holds: bool) -> None:
    assert evidence.direct_pull(WANTED, origin).holds is holds


def test_a_client_with_other_content_says_why() -> None:
    """What the client complained of is what is told."""
    claim = evidence.brought("podman", as_published=False, complaint="unauthorized")

    assert (claim.holds, claim.said) == (False, "podman: unauthorized")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (43_050_301, "43.1 MB")]
)
def test_sizes_are_rounded_for_reading(count: int, text: str) -> None:
    assert evidence.size(count) == text
