"""Where a pause is kept: found again after a crash, and on the safe side when it cannot be read."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidegate_agent.pause import Pause, PauseFile

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize("duration", [None, timedelta(seconds=1), timedelta(days=365)])
def test_a_pause_is_found_again_until_it_is_removed(tmp_path: Path, duration: timedelta | None) -> None:
    """Operations: `tidegate pause` outlives a crash."""
    file = PauseFile(tmp_path / "paused.json")
    assert file.read(now=NOON) is None
    pause = Pause.lasting(duration, now=NOON)
    file.write(pause)
    assert PauseFile(tmp_path / "paused.json").read(now=NOON) == pause

    file.remove()
    file.remove()
    assert file.read(now=NOON) is None
    assert list(tmp_path.iterdir()) == []


def test_a_pause_whose_time_is_over_is_none(tmp_path: Path) -> None:
    """Operations: `--for`."""
    file = PauseFile(tmp_path / "paused.json")
    file.write(Pause.lasting(timedelta(minutes=10), now=NOON))

    assert file.read(now=NOON + timedelta(minutes=9, seconds=59)) is not None
    assert file.read(now=NOON + timedelta(minutes=10)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"until": 1}', b'{"until": "2026-11-21T12:00:00"}']
)
def test_a_file_that_cannot_be_understood_is_a_pause_without_an_end(tmp_path: Path, content: bytes) -> None:
    """I1: not steering is the side on which no pull fails."""
    path = tmp_path / "paused.json"
    path.write_bytes(content)

    assert PauseFile(path).read(now=NOON) == Pause(until=None)
