"""The supervisor with real processes: hanging, crashing, refusing, signals, and its own death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.waiting import until

LEASE_S = 0.4
ROOT = Path(__file__).parents[3]


class Supervised:
    """A supervisor and its agent, as the lines they print."""

    def __init__(self, *behaviours: str) -> None:
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervised.py")), str(LEASE_S), *behaviours],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "agent")},
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._agents: list[int] = []

    def line(self, start: str) -> str:
        """The next line that starts so."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"no line {start!r} in {self.lines}")

    def life(self) -> int:
        """The process id of the next life, which can take signals by now."""
        self._agents.append(int(self.line("life").split()[-1]))
        return self._agents[-1]

    def end(self) -> int:
        """The exit code, with all lines read."""
        rest, self.errors = self._process.communicate(timeout=20)
        self.lines += rest.splitlines()
        return self._process.returncode

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            for agent in self._agents:
                if not gone(agent):
                    os.kill(agent, signal.SIGKILL)
            self._process.communicate()


@pytest.fixture
def supervised() -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*behaviours: str) -> Supervised:
        started.append(Supervised(*behaviours))
        return started[-1]

    yield start
    for one in started:
        one.close()


Start = Callable[..., Supervised]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_stopped_agent_is_killed_within_the_lease_and_started_again(supervised: Start) -> None:
    """N5: a hung process would hold the connections it has accepted."""
    supervisor = supervised("serve")
    first = supervisor.life()
    supervisor.line("notify READY=1")
    os.kill(first, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: gone(first), "the end of the stopped agent")
    took_s = time.monotonic() - stopped
    second = supervisor.life()

    assert 0.5 * LEASE_S < took_s < LEASE_S + 0.25
    assert second != first
    assert any("no heartbeat from process" in line for line in supervisor.lines)


def test_an_agent_whose_loop_is_blocked_is_killed_within_the_lease(supervised: Start) -> None:
    """N5: heartbeats come from the accepting loop, and this one does not turn."""
    supervisor = supervised("block", "serve")
    blocked = supervisor.life()
    supervisor.line("notify READY=1")
    started = time.monotonic()
    until(lambda: gone(blocked), "the end of the blocked agent")

    assert time.monotonic() - started < LEASE_S + 0.25
    assert supervisor.life() != blocked


def test_a_killed_agent_is_started_again(supervised: Start) -> None:
    """N4: after death comes a restart, and readiness is told once."""
    supervisor = supervised("serve")
    first = supervisor.life()
    supervisor.line("notify READY=1")
    os.kill(first, signal.SIGKILL)

    assert supervisor.life() != first
    assert any("SIGKILL" in line for line in supervisor.lines)
    supervisor.signal(signal.SIGTERM)
    assert supervisor.end() == 0
    assert supervisor.lines.count("notify READY=1") == 1


def test_a_refusal_to_start_is_passed_through_with_its_exit_code(supervised: Start) -> None:
    """Nothing is tried again: the configuration does not get better by itself."""
    supervisor = supervised("refuse")

    assert supervisor.end() == 2
    assert [line.split()[0] for line in supervisor.lines] == ["life", "clean-up"]


def test_a_bug_at_the_start_is_shown_and_is_a_refusal(supervised: Start) -> None:
    """The child never unwinds into its parent's stack."""
    supervisor = supervised("raise")

    assert supervisor.end() == 70
    assert "RuntimeError: a bug at the start" in supervisor.errors
    assert supervisor.lines[-1] == "clean-up by supervisor"


def test_an_agent_that_never_beats_is_killed(supervised: Start) -> None:
    """I8: starting has a bound, too."""
    supervisor = supervised("never-beat")

    assert supervisor.end() == 128 + signal.SIGKILL
    assert supervisor.lines[-1] == "clean-up by supervisor"


def test_a_crash_loop_ends(supervised: Start) -> None:
    """N4: five ends in a minute, each wait longer than the last, then the host is left alone."""
    supervisor = supervised("crash")

    assert supervisor.end() == 1
    assert sum(line.startswith("life") for line in supervisor.lines) == 5
    gave_up, what_now, last = supervisor.lines[-3:]
    assert gave_up == "supervisor: the agent ended 5 times in 0 s: giving up"
    assert "pulls go direct" in what_now
    assert "systemctl restart tidegate" in what_now
    assert last == "clean-up by supervisor"
    waits = [line.split()[-2] for line in supervisor.lines if "starting it again" in line]
    assert time.monotonic() - supervisor.started > 0.02 + 0.04 + 0.08 + 0.16
    assert len(waits) == 4


def test_an_agent_that_ends_by_itself_is_not_started_again(supervised: Start) -> None:
    """Exit code 0 is an end that was meant."""
    supervisor = supervised("end")

    assert supervisor.end() == 0
    assert sum(line.startswith("life") for line in supervisor.lines) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_is_forwarded_and_followed_by_one_clean_up(supervised: Start, number: int) -> None:
    """N18: systemd and Ctrl-C end the agent gracefully, and the keeper goes last."""
    supervisor = supervised("serve")
    agent = supervisor.life()
    supervisor.line("notify READY=1")
    group = os.getpgid(agent)
    supervisor.signal(number)

    assert supervisor.end() == 0
    assert group == agent  # or a terminal's Ctrl-C would reach it a second time
    assert supervisor.lines[-3:] == [
        "notify STOPPING=1",
        f"agent ends on {signal.Signals(number).name}",
        "clean-up by supervisor",
    ]


def test_a_reload_is_forwarded(supervised: Start) -> None:
    """N18: SIGHUP is the agent's to answer, and ends nothing."""
    supervisor = supervised("serve")
    supervisor.life()
    supervisor.line("notify READY=1")
    supervisor.signal(signal.SIGHUP)

    assert supervisor.line("reload") == "reload"


def test_an_agent_that_does_not_end_when_asked_is_killed(supervised: Start) -> None:
    """I8: a stop has a bound."""
    supervisor = supervised("deaf")
    supervisor.life()
    supervisor.line("notify READY=1")
    supervisor.signal(signal.SIGTERM)

    assert supervisor.end() == 128 + signal.SIGKILL
    assert supervisor.lines[-1] == "clean-up by supervisor"


def test_an_agent_whose_supervisor_was_killed_ends_gracefully_and_cleans_up(supervised: Start) -> None:
    """N4: nobody would watch it any more."""
    supervisor = supervised("serve")
    agent = supervisor.life()
    supervisor.line("notify READY=1")
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.line("agent ends on SIGTERM")
    supervisor.line("clean-up by agent")

    until(lambda: gone(agent), "the end of the agent")


def test_a_supervisor_that_was_stopped_does_not_blame_the_agent(supervised: Start) -> None:
    """N5: a frozen cgroup stops both; the agent gets a whole lease to prove that it lives."""
    supervisor = supervised("serve")
    agent = supervisor.life()
    supervisor.line("notify READY=1")
    for pid in (supervisor.pid, agent):
        os.kill(pid, signal.SIGSTOP)
    frozen = time.monotonic()
    until(lambda: time.monotonic() > frozen + 2 * LEASE_S, "the time of a freeze")
    os.kill(supervisor.pid, signal.SIGCONT)
    thawed = time.monotonic()
    until(lambda: time.monotonic() > thawed + LEASE_S / 2, "the agent's turn")
    os.kill(agent, signal.SIGCONT)
    os.kill(agent, signal.SIGHUP)

    assert supervisor.line("reload") == "reload"
    assert not any("no heartbeat" in line for line in supervisor.lines)


def test_the_supervisor_is_tiny() -> None:
    """DESIGN 4: the parent imports the standard library only, and little of it."""
    program = (
        "import sys, tidegate_agent.supervisor\n"
        "rss = next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]\n"
        "print(rss, *sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    outcome = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(ROOT / "agent"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    rss_kib, *modules = outcome.stdout.split()

    assert modules == ["__main__", "tidegate_agent"]
    assert int(rss_kib) < 16 * 1024


def test_an_agent_that_lingers_is_let_go_and_cleans_up_by_itself(supervised: Start) -> None:
    """N6: the supervisor ends well without it, and neither restarts it nor takes it along."""
    scenario = supervised("linger")
    scenario.life()

    assert scenario.end() == 0
    assert scenario.lines[-2:] == ["agent alone", "clean-up by agent"]
    assert "clean-up by supervisor" not in scenario.lines
    assert sum(line.startswith("life") for line in scenario.lines) == 1
