"""A clock of an agent's own, which a test sets: Debian's libfaketime, preloaded into the agent alone.

Wall-clock time is read from a file at most a second after it was written; what runs by the monotonic clock
(leases, time-outs) goes on as ever. The kernel knows no other way: a time namespace has no wall clock.
"""

from __future__ import annotations

from pathlib import Path

from .host import Host

LIBRARY = next((str(each) for each in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")
_FILE = "/etc/lab-clock"


class Clock:
    """Made before the agent, which is started with `env`."""

    def __init__(self, host: Host):
        self._host = host
        self.env = {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": _FILE,
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        """From now on it is that many seconds off."""
        self._host.write(_FILE, f"{seconds:+d}\n", mode=0o644)
