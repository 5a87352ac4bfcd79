"""A process on a lab host, watched from outside through a pidfd (pidfd_open(2)) and its host's init.

`pid` is the number *inside* the host (hosts have pid namespaces of their own), as `tidegate status` tells it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


class CommandFailed(AssertionError):
    """A command that a scenario relied on did not end with 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a finished command left: `exit_code` is negative for the signal that ended it."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def or_raise(self) -> Completed:
        if self.exit_code != 0:
            raise CommandFailed(f"{' '.join(self.argv)}: exit {self.exit_code}\n{self.stdout}{self.stderr}")
        return self


class Process:
    """A started process. Closing it, or leaving its `with` block, kills what still runs."""

    def __init__(
        self, argv: Sequence[str], pid: int, pidfd: int, reply: socket.socket | None, log: Path | None
    ):
        self.argv = tuple(argv)
        self.pid = pid
        self.log_path = log
        self._pidfd = pidfd
        self._reply = (
            reply  # None for a process that was found, not started: its exit status is not ours to know
        )
        self._status: int | None = None
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.duration_s = 0.0

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Process {self.pid} {' '.join(self.argv)}>"

    @property
    def running(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    @property
    def log(self) -> str:
        """What the process wrote so far to stdout and stderr."""
        return self.log_path.read_text(errors="replace") if self.log_path else ""

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to this process alone; a process that is gone is none."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout_s: float = 30) -> int:
        """The exit code (negative: the signal) once it has ended; TimeoutError otherwise."""
        if not select.select([self._pidfd], [], [], timeout_s)[0]:
            raise TimeoutError(f"{self!r} still runs after {timeout_s} s\n{self.log[-4000:]}")
        with self._lock:
            if self._status is None and self._reply is not None:
                self.duration_s = time.monotonic() - self._started
                self._reply.settimeout(10)
                message = self._reply.recv(4096)
                # No message: the whole host went down, and its processes with it.
                self._status = json.loads(message)["status"] if message else signal.SIGKILL
        return os.waitstatus_to_exitcode(self._status or 0)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM, then wait; the exit code."""
        self.kill(signal.SIGTERM)
        return self.wait(timeout_s)

    def close(self) -> None:
        if self._pidfd >= 0:
            self.kill(signal.SIGKILL)
            self.wait()
            os.close(self._pidfd)
            self._pidfd = -1
        if self._reply is not None:
            self._reply.close()
            self._reply = None
