"""Which back end `auto` picks: the first that can put its rules in, and what it says of the others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate_agent.steering import NoSteering, Steering
from tidegate_agent.steering.choice import chosen, order
from tidegate_agent.steering.claim import AnotherSteers
from tidegate_core.errors import StartRefused


class Candidate(NoSteering):
    """Opens, or refuses; says what was done with it."""

    def __init__(self, name: str, refused: StartRefused | None, done: list[str]) -> None:
        self.backend = name
        self._refused = refused
        self._done = done

    def open(self) -> None:
        self._done.append(f"open {self.backend}")
        if self._refused is not None:
            raise self._refused

    def close(self) -> None:
        self._done.append(f"close {self.backend}")


def candidates(done: list[str], **refusals: StartRefused) -> Callable[[str], Steering]:
    return lambda name: Candidate(name, refusals.get(name.replace("-", "_")), done)


@pytest.fixture
def untracked(tmp_path: Path) -> Path:
    return tmp_path / "no such file"


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    count = tmp_path / "nf_conntrack_count"
    count.write_text("17\n")
    return count


def test_ebpf_comes_first_where_nothing_tracks_connections(untracked: Path) -> None:
    """N15: the first rule that needs tracking would slow the whole host down."""
    done: list[str] = []
    choice = chosen("auto", candidates(done), tracked=untracked)

    assert choice.steering.backend == "ebpf"
    assert choice.passed_over == {}
    assert done == ["open ebpf", "close ebpf"]


def test_nft_comes_first_where_connections_are_tracked_anyway(tracked: Path) -> None:
    """N15: it has fewer blind spots."""
    assert chosen("auto", candidates([]), tracked=tracked).steering.backend == "nft"


def test_a_count_of_nothing_is_no_tracking(tmp_path: Path) -> None:
    """N15: the module may be loaded for nobody."""
    (tmp_path / "count").write_text("0\n")

    assert chosen("auto", candidates([]), tracked=tmp_path / "count").steering.backend == "ebpf"


def test_the_next_one_is_taken_and_the_log_is_told_why(tracked: Path) -> None:
    """N15: each that refused says its cause."""
    done: list[str] = []
    build = candidates(done, nft=StartRefused("no owner flag"), ebpf=StartRefused("no bpf"))
    choice = chosen("auto", build, tracked=tracked)

    assert choice.steering.backend == "nft-lease"
    assert choice.passed_over == {"nft": "no owner flag", "ebpf": "no bpf"}
    assert done == ["open nft", "open ebpf", "open nft-lease", "close nft-lease"]


def test_where_nothing_works_all_causes_are_named_and_the_first_ones_remedy(tracked: Path) -> None:
    """N15: one message, with what to type."""
    refusals = {
        name.replace("-", "_"): StartRefused(f"{name} cannot", next_step=f"mend {name}")
        for name in order(connections_are_tracked=True)
    }
    with pytest.raises(StartRefused) as refused:
        chosen("auto", candidates([], **refusals), tracked=tracked)

    for name in ("nft", "ebpf", "nft-lease", "iptables"):
        assert f"{name}: {name} cannot" in refused.value.cause
    assert refused.value.next_step == "mend nft"


def test_another_agent_ends_the_search(tracked: Path) -> None:
    """I3: the next back end would put a second agent beside the first."""
    done: list[str] = []
    with pytest.raises(AnotherSteers):
        chosen("auto", candidates(done, nft=AnotherSteers("process 7 steers")), tracked=tracked)

    assert done == ["open nft"]


def test_a_named_back_end_is_taken_without_a_try(tracked: Path) -> None:
    """Its own refusal, when it starts, says more."""
    done: list[str] = []

    assert chosen("iptables", candidates(done), tracked=tracked).steering.backend == "iptables"
    assert chosen("none", candidates(done), tracked=tracked).steering.backend == "none"
    assert done == []
