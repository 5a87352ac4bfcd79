"""What unfinished fetches leave in `partial`: listed, bounded, and never more than that removed."""

import os
from pathlib import Path

import pytest

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.leftovers import leftovers, record_of, tidy, trim
from tidegate_proxy.storage.store import Store

DAY_S = 86_400.0
NOW = 1_800_000_000.0
FOREIGN = ("README", "A" * 64, "a" * 64 + ".bak", "a" * 63, "a" * 64 + ".extents.old")


def left(directory: Path, name: str, size: int, age_s: float, *, record: bool = True) -> Path:
    path = directory / name
    path.write_bytes(b"x" * size)
    if record:
        record_of(path).write_text("tidegate-partial 1 100000\n")
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


def test_unfinished_blobs_are_listed_with_what_they_take_newest_first(tmp_path: Path) -> None:
    """C14: for whoever weighs them against `cache.max_size`; holes take nothing."""
    old = left(tmp_path, "a" * 64, 8192, 2 * DAY_S)
    new = left(tmp_path, "b" * 128, 4096, DAY_S)
    os.truncate(new, 1 << 30)
    os.utime(new, (NOW, NOW))
    for name in FOREIGN:
        (tmp_path / name).write_bytes(b"x")

    found = leftovers(tmp_path)
    assert [each.path for each in found] == [new, old]
    assert [each.changed_at for each in found] == [NOW, NOW - 2 * DAY_S]
    assert found[0].disk_bytes < 1 << 20
    assert leftovers(tmp_path / "nothing") == []


def test_what_is_too_old_or_too_much_is_removed_the_oldest_first(tmp_path: Path) -> None:
    """I8, C13: leftovers that nobody asks for are bounded by age and by size."""
    ancient = left(tmp_path, "a" * 64, 1000, 4 * DAY_S)
    older = left(tmp_path, "b" * 64, 20_000, 2 * DAY_S)
    newer = left(tmp_path, "c" * 64, 20_000, DAY_S)
    foreign = [left(tmp_path, name, 50_000, 9 * DAY_S, record=False) for name in FOREIGN]
    trim(tmp_path, now=NOW, max_age_s=3 * DAY_S, max_bytes=30_000)

    assert set(tmp_path.iterdir()) == {newer, record_of(newer), *foreign}
    assert not ancient.exists()
    assert not older.exists()


def test_what_is_being_filled_is_not_removed(tmp_path: Path) -> None:
    """C14: neither by age nor at the start of another process."""
    store = Store.open(tmp_path, durability="relaxed")
    digest = Digest.of(b"content")
    filling = store.partial(digest)
    path = tmp_path / "partial" / digest.encoded
    os.utime(path, (0, 0))
    store.trim_leftovers()
    tidy(tmp_path / "partial")
    assert path.exists()

    del filling
    store.trim_leftovers()
    assert not path.exists()
    store.close()


@pytest.mark.parametrize("orphan", ["a" * 64, "a" * 64 + ".extents", "a" * 64 + ".12.3"])
def test_what_cannot_be_resumed_goes_at_the_start(tmp_path: Path, orphan: str) -> None:
    """C13: bytes without a record, a record without bytes, a manifest that was being put."""
    kept = left(tmp_path, "b" * 64, 10, 0)
    (tmp_path / orphan).write_bytes(b"x")
    tidy(tmp_path)

    assert set(tmp_path.iterdir()) == {kept, record_of(kept)}
