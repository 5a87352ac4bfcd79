"""What is done after the agent's end: real processes, a real lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import until
from tidegate_agent.leftovers import clean_up
from tidegate_agent.single import SingleInstance

# A supervisor takes the lock, and an agent that it forks has a share of it.
PAIR = """
import os, signal, sys
from pathlib import Path
from tidegate_agent.single import SingleInstance
lock = SingleInstance.acquire(Path(sys.argv[1]))
agent = os.fork()
if agent == 0:
    if sys.argv[2] == "lingers":
        lock.let_go()
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, 0.7))  # its drain
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    while True:
        signal.pause()
(Path(sys.argv[1]) / "agent.sock").touch()
print(agent, flush=True)
signal.pause()
"""
Start = Callable[[str], tuple[int, int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts such a pair; the numbers of the supervisor and the agent."""
    agents: list[int] = []
    supervisors: list[subprocess.Popen[str]] = []

    def started(how: str) -> tuple[int, int]:
        argv = [sys.executable, "-c", PAIR, str(tmp_path), how]
        supervisor = subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
        )
        assert supervisor.stdout is not None
        supervisors.append(supervisor)
        agents.append(int(supervisor.stdout.readline()))
        return supervisor.pid, agents[-1]

    yield started
    for agent in agents:
        if running(agent):
            os.kill(agent, signal.SIGKILL)
    for supervisor in supervisors:
        supervisor.kill()
        supervisor.communicate()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not running(pid), "it is dead")


def test_a_stopped_agent_without_its_supervisor_is_killed(tmp_path: Path, start: Start) -> None:
    """I1: it would refuse its successor for ever."""
    supervisor, agent = start("works")
    os.kill(agent, signal.SIGSTOP)
    kill(supervisor)

    told = clean_up(tmp_path, within_s=0.2)

    assert not running(agent)
    assert str(agent) in told[0]
    assert list(tmp_path.iterdir()) == []


def test_an_agent_that_ends_in_time_is_waited_for(tmp_path: Path, start: Start) -> None:
    """I1: what it drains is not cut."""
    supervisor, agent = start("works")
    kill(supervisor)
    os.kill(agent, signal.SIGTERM)

    told = clean_up(tmp_path, within_s=20)

    assert not running(agent)
    assert told == ["removed the lock of an agent that was killed"]
    assert list(tmp_path.iterdir()) == []


def test_an_agent_with_its_supervisor_is_left_alone(tmp_path: Path, start: Start) -> None:
    """I4: a unit that was refused because another agent runs must not end that one."""
    supervisor, agent = start("works")

    assert clean_up(tmp_path, within_s=0) == []
    assert running(supervisor)
    assert running(agent)
    assert (tmp_path / "agent.lock").exists()


def test_a_lingering_process_is_left_alone(tmp_path: Path, start: Start) -> None:
    """N6: it carries the connections of others, and holds no lock."""
    supervisor, agent = start("lingers")
    kill(supervisor)

    clean_up(tmp_path, within_s=0)

    assert running(agent)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_done_where_nothing_was_left(tmp_path: Path) -> None:
    """After an orderly end, and before any start."""
    assert clean_up(tmp_path / "none") == []
    SingleInstance.acquire(tmp_path).release()
    assert clean_up(tmp_path) == []
