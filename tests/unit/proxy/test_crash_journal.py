"""Which requests were in flight at a death, told by a process that died and read by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate_proxy.http.crash_journal import MEMORY_S, CrashJournal, name_of

PULL = name_of("GET", "ghcr.io", "/v2/team/tool/manifests/1")
OTHER = name_of("GET", "ghcr.io", "/v2/team/tool/manifests/2")

DYING = """
import os, sys
from pathlib import Path
from tidegate_proxy.http.crash_journal import CrashJournal
journal = CrashJournal(Path(sys.argv[1]), clock=lambda: float(sys.argv[2]))
journal.open()
slots = [journal.enter(name.encode()) for name in sys.argv[4:]]
if sys.argv[3] == "answered":
    for slot in slots:
        journal.leave(slot)
if sys.argv[3] == "told":
    journal.close()
os.kill(os.getpid(), 9)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def dies(directory: Path, clock: Clock, *names: bytes, after: str = "in flight") -> None:
    """A process with these requests in flight, killed: in the middle of them, or later."""
    arguments = [str(directory), str(clock.now), after, *(name.decode() for name in names)]
    died = subprocess.run([sys.executable, "-c", DYING, *arguments], check=False)
    assert died.returncode == -signal.SIGKILL


def opened(directory: Path, clock: Clock) -> CrashJournal:
    journal = CrashJournal(directory, clock=clock)
    journal.open()
    return journal


def test_a_request_in_flight_at_two_deaths_is_bypassed_for_an_hour(tmp_path: Path) -> None:
    """I1: and none that was in flight at one of them only."""
    clock = Clock()
    dies(tmp_path, clock, PULL, OTHER)
    clock.now += 10
    dies(tmp_path, clock, PULL)
    clock.now += 10
    journal = opened(tmp_path, clock)

    assert journal.crashed_twice(PULL)
    assert not journal.crashed_twice(OTHER)
    assert journal.bypassed == (PULL.decode(),)
    clock.now += MEMORY_S - 0.5
    assert journal.crashed_twice(PULL)
    clock.now += 1
    assert not journal.crashed_twice(PULL)


def test_one_death_blames_nobody(tmp_path: Path) -> None:
    """I1: something else may have killed it."""
    clock = Clock()
    dies(tmp_path, clock, PULL, PULL)

    assert not opened(tmp_path, clock).crashed_twice(PULL)


def test_a_request_that_was_answered_before_the_death_is_not_blamed(tmp_path: Path) -> None:
    """I1: a slot is emptied when its request has been handled."""
    clock = Clock()
    for _ in range(2):
        dies(tmp_path, clock, PULL, after="answered")

    assert not opened(tmp_path, clock).crashed_twice(PULL)


def test_an_end_that_was_asked_for_blames_nobody_and_leaves_no_file(tmp_path: Path) -> None:
    """I1, I4: SIGTERM is no crash, whatever follows while transfers in flight end."""
    clock = Clock()
    for _ in range(2):
        dies(tmp_path, clock, PULL, after="told")

    assert list(tmp_path.iterdir()) == []
    assert not opened(tmp_path, clock).crashed_twice(PULL)


def test_two_deaths_that_lie_far_apart_do_not_add_up(tmp_path: Path) -> None:
    """I8: deaths are forgotten."""
    clock = Clock()
    dies(tmp_path, clock, PULL)
    opened(tmp_path, clock)
    clock.now += MEMORY_S
    dies(tmp_path, clock, PULL)

    assert not opened(tmp_path, clock).crashed_twice(PULL)


def test_deaths_before_a_reboot_do_not_count(tmp_path: Path) -> None:
    """The clock starts again with the machine: what lies ahead of it was in another life."""
    clock = Clock()
    dies(tmp_path, clock, PULL)
    opened(tmp_path, clock)
    clock.now = 5.0
    dies(tmp_path, clock, PULL)

    assert not opened(tmp_path, clock).crashed_twice(PULL)


def test_a_full_journal_names_no_more_and_harms_nobody(tmp_path: Path) -> None:
    """I8: a slot is free again once its request has been handled."""
    journal = opened(tmp_path, Clock())
    slots = [journal.enter(PULL) for _ in range(3000)]
    assert len(set(slots)) == 1024 + 1
    for slot in slots:
        journal.leave(slot)

    assert len({journal.enter(PULL) for _ in range(1024)}) == 1024
    assert (tmp_path / "in-flight").stat().st_size == 1024 * 256


def test_a_journal_that_is_not_open_names_nothing(tmp_path: Path) -> None:
    """I1: where it cannot be kept, requests are handled all the same."""
    with pytest.raises(OSError, match="No such file"):
        CrashJournal(tmp_path / "missing").open()
    journal = CrashJournal(tmp_path / "missing")
    journal.leave(journal.enter(PULL))

    assert not journal.crashed_twice(PULL)
    journal.close()


@given(st.binary(max_size=2000), st.binary(max_size=200))
def test_damaged_files_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, table: bytes, deaths: bytes
) -> None:
    """I1: what cannot be read says nothing."""
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "in-flight").write_bytes(table)
    (directory / "deaths.json").write_bytes(deaths)
    opened(directory, Clock()).close()


@given(st.text(max_size=400), st.text(max_size=400))
@example("x" * 400, "")
def test_a_name_fits_its_slot_and_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, path: str, query: str
) -> None:
    """Whatever the client wrote; a query is never kept."""
    directory, clock = tmp_path_factory.mktemp("names"), Clock()
    name = name_of("GET", "ghcr.io", f"/{path.encode(errors='ignore').decode()}?{query}")
    for _ in range(2):
        journal = opened(directory, clock)
        journal.enter(name)

    assert opened(directory, clock).crashed_twice(name)
    assert b"?" not in name


def test_the_journal_is_for_its_owner_s_eyes(tmp_path: Path) -> None:
    """Names of private repositories stand in it."""
    before = os.umask(0)
    try:
        opened(tmp_path, Clock())
    finally:
        os.umask(before)

    assert (tmp_path / "in-flight").stat().st_mode & 0o777 == 0o600
