"""An operator's word that nothing is to be steered for now, kept where a restart by the supervisor finds it.

The file lies in the runtime directory and goes with the agent's orderly end: a crash must not end a pause,
stopping and starting the agent does. A file that cannot be understood is a pause without an end, because
not steering is the side on which nobody's pull fails.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

LONGEST = timedelta(days=365)
NEXT_STEP = "tidegate resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """`until` is None for a pause that only `tidegate resume` ends."""

    until: datetime | None

    @classmethod
    def lasting(cls, duration: timedelta | None, *, now: datetime) -> "Pause":
        """From now on; ends are told in whole seconds, and so they are."""
        return cls(until=None if duration is None else (now + duration).replace(microsecond=0))

    @property
    def reason(self) -> str:
        """What `status` says."""
        if self.until is None:
            return "paused by the operator until it is told to resume"
        return f"paused by the operator until {written(self.until)}"

    def left_s(self, now: datetime) -> float | None:
        """Seconds to its end, 0 when it is over; None when it has none."""
        return None if self.until is None else max(0.0, (self.until - now).total_seconds())

    def is_over(self, now: datetime) -> bool:
        return self.left_s(now) == 0


class PauseFile:
    """Where a pause outlives the process that it was told to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, *, now: datetime) -> Pause | None:
        """The pause that is on, if one is."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            return Pause(until=None)
        try:
            pause = Pause(until=msgspec.json.decode(content, type=_Content).until)
        except msgspec.DecodeError:
            return Pause(until=None)
        return None if pause.is_over(now) else pause

    def write(self, pause: Pause) -> None:
        """Raises OSError."""
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(_Content(until=pause.until)))
        new.replace(self._path)

    def remove(self) -> None:
        """Idempotent; where even this fails, the pause is found again after a crash."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None


def written(moment: datetime) -> str:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
