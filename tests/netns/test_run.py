"""script/run: starts the agent on a machine with nothing configured, and leaves that machine as it was.

Real rules in a network namespace with loopback alone, where no registry name resolves; a real terminal, on
which Ctrl-C is typed; a trust store of the test's own.
"""

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.trusting import Machine, missing, prepared, trust_store_of_this_machine
from tidegate_agent.trust import trusted

CHECKOUT = Path(__file__).parents[2]
READY_S, STOPPED_S = 60, 60

COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# The shell around it sends what the test asks for, and looks at what is left once script/run has ended.
AROUND = """
trap : INT
ip link set lo up
mount -t tmpfs none /run
{ read -r signal pid; kill -"$signal" "$pid"; } <"$1" &
"$0"
echo "exit code $?"
echo "rules left: $(nft list ruleset)"
echo "in /run: $(ls -A /run)"
echo "processes: $(ps -e -o args= | grep '[t]idegate agent')"
echo "that was all"
"""


class Terminal:
    """script/run on a terminal, and what it has written there."""

    def __init__(self, machine: Machine) -> None:
        self.store_before = machine.content()
        self.master, slave = pty.openpty()
        self.signals = machine.home / "signals"
        os.mkfifo(self.signals)
        around = machine.argv(
            "bash", "-c", AROUND, str(CHECKOUT / "script/run"), str(self.signals), alone=True
        )
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *around], env=machine.environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def until(self, pattern: str, timeout_s: float) -> "re.Match[str]":
        """Reads on until the pattern has been written; fails with all that was, when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.text)):
            readable, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no {pattern!r} within {timeout_s} s in:\n{self.text}"
            try:
                self.text += COLOURS.sub("", os.read(self.master, 65536).decode(errors="replace"))
            except OSError as error:  # EIO: everybody has closed the other side
                raise AssertionError(f"ended without {pattern!r}:\n{self.text}") from error
        return found

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def send(self, signal_name: str) -> None:
        """Sends a signal to the process that script/run says one may kill."""
        pid = self.until(r"or kill (\d+)", READY_S)[1]
        self.signals.write_text(f"{signal_name} {pid}\n")

    def close(self) -> None:
        self.process.kill()  # and with it every process of its namespace
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which Tidegate never ran."""
    if reason := missing():
        pytest.skip(reason)
    machines_own = trust_store_of_this_machine()
    yield prepared(Machine(tmp_path))
    assert trust_store_of_this_machine() == machines_own


@pytest.fixture
def terminal(machine: Machine) -> Iterator[Terminal]:
    """script/run, started on a terminal."""
    terminal = Terminal(machine)
    yield terminal
    terminal.close()


def test_it_prints_what_it_steers_how_to_stop_it_and_that_no_name_resolves(terminal: Terminal) -> None:
    """Issue 2: an empty configuration, also where no registry name resolves; the agent keeps trying."""
    terminal.until(r"registry-1\.docker\.io", READY_S)
    terminal.until(r"Ctrl-C", READY_S)
    terminal.until(r"not resolved, trying again", READY_S)
    terminal.until(r"\bsteering\b.*hosts", READY_S)

    assert terminal.process.poll() is None


@pytest.mark.parametrize("by", ["Ctrl-C", "TERM", "HUP"])
def test_stopping_it_leaves_the_machine_as_it_was(machine: Machine, terminal: Terminal, by: str) -> None:
    """I4: rules, runtime directory, processes, trust store; the state directory alone keeps anything."""
    before = terminal.store_before
    terminal.until(r"\bsteering\b.*hosts", READY_S)
    assert trusted(machine.bundle, machine.certificate())

    if by == "Ctrl-C":
        terminal.type(b"\x03")
    else:
        terminal.send(by)
    terminal.until("that was all", STOPPED_S)

    left = re.findall(
        r"^(exit code|rules left:|in /run:|processes:)[ ]*(.*?)\r$", terminal.text, re.MULTILINE
    )
    assert left == [("exit code", "0"), ("rules left:", ""), ("in /run:", ""), ("processes:", "")]
    assert machine.content() == before
