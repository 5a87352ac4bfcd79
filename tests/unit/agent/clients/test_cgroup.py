"""Cgroups by id, on folders that look like a hierarchy: there too an id is an inode number."""

import shutil
from pathlib import Path

import pytest

from tidegate_agent.clients.cgroup import Cgroups, hierarchy


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(root: Path, name: str, pids: str) -> int:
    """A cgroup with these processes, and its id."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text(pids)
    return directory.stat().st_ino


def test_a_cgroup_tells_its_processes_newest_first(tmp_path: Path, clock: Clock) -> None:
    """N9: however deep it lies; a process that is not in our /proc shows as 0."""
    service = make(tmp_path, "system.slice/containerd.service", "0\n12\n345\n7\n")

    assert Cgroups(tmp_path, clock=clock).pids(service) == [345, 12, 7]


def test_a_new_cgroup_is_found_but_not_looked_for_more_than_once_a_second(
    tmp_path: Path, clock: Clock
) -> None:
    """I8: a node of Kubernetes has thousands, and ids that we cannot see come with each connection."""
    cgroups = Cgroups(tmp_path, clock=clock)
    assert cgroups.pids(make(tmp_path, "first", "1\n")) == [1]
    second = make(tmp_path, "second", "2\n")

    assert cgroups.pids(second) is None
    clock.now += 1.1
    assert cgroups.pids(second) == [2]


def test_a_cgroup_that_is_gone_tells_nothing(tmp_path: Path, clock: Clock) -> None:
    """N9: then every process may be the one."""
    gone = make(tmp_path, "gone", "1\n")
    cgroups = Cgroups(tmp_path, clock=clock)
    assert cgroups.pids(gone) == [1]
    shutil.rmtree(tmp_path / "gone")

    assert cgroups.pids(gone) is None


def test_the_root_and_no_hierarchy_tell_nothing(tmp_path: Path, clock: Clock) -> None:
    """N9: with version 1 every socket is in version 2's root."""
    (tmp_path / "cgroup.procs").write_text("1\n")

    assert Cgroups(tmp_path, clock=clock).pids(tmp_path.stat().st_ino) is None
    assert Cgroups(None, clock=clock).pids(1) is None


def test_the_hierarchy_is_where_version_2_is_mounted() -> None:
    """N9: not at its usual place on hybrid hosts."""
    hybrid = (
        "40 30 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "41 30 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )

    assert hierarchy(hybrid) == Path("/sys/fs/cgroup/unified")
    assert hierarchy("40 30 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n") is None
