"""A fetch survives the process: what it left is hashed again, and only what is right counts."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate_proxy.fetching.origin import OriginRefused
from tidegate_proxy.oci.byte_range import Closed, Extent, From
from tidegate_proxy.oci.digest import Digest
from unit.proxy.memory_origin import MemoryOrigin
from unit.proxy.place import Place
from unit.proxy.reader import Reader, until

BLOB = random.Random(3).randbytes(5 * (1 << 20) + 4321)
DIGEST = Digest.of(BLOB)
NOTED_EVERY = 256 * 1024


async def killed_at(state_dir: Path, position: int, blob: bytes = BLOB) -> int:
    """A process that got `position` bytes and then ended without a word; returns what its record claims."""
    place = Place(state_dir)
    origin = MemoryOrigin(content=blob, pause_at=position)
    await place.fetches.join(Digest.of(blob), origin)
    path = state_dir / "partial" / Digest.of(blob).encoded
    await until(lambda: path.exists() and path.stat().st_size >= position)
    await place.close()
    return claimed(state_dir)


def record_of(state_dir: Path) -> Path:
    return next((state_dir / "partial").glob("*.extents"))


def claimed(state_dir: Path) -> int:
    lines = record_of(state_dir).read_text().splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("prefix")), default=0)


async def fetched_again(state_dir: Path, origin: MemoryOrigin) -> Place:
    """The next process, once it has served all of the blob and stored it."""
    place = Place(state_dir)
    assert await Reader(await place.fetches.join(DIGEST, origin)).to_end() == BLOB
    await place.idle()
    stored = place.store.blob(DIGEST)
    assert stored is not None
    with stored:
        assert await stored.content() == BLOB
    assert not list((state_dir / "partial").iterdir())
    return place


@pytest.mark.parametrize("position", [NOTED_EVERY, 1_000_000, 4_500_000, len(BLOB) - 1])
async def test_the_next_process_fetches_only_what_is_missing(tmp_path: Path, position: int) -> None:
    """C13: it asks from where the record ends, and at most a little comes twice."""
    first = await killed_at(tmp_path, position)
    origin = MemoryOrigin(content=BLOB)
    place = await fetched_again(tmp_path, origin)

    assert position - first <= NOTED_EVERY + origin.chunk_bytes
    assert origin.reads == [first]
    assert origin.sent_bytes == len(BLOB) - first
    assert [end.healed for end in place.ends] == [{"restart": 1}]
    await place.close()


async def test_a_blob_that_was_complete_but_had_no_name_yet_is_not_asked_for(tmp_path: Path) -> None:
    """C13: killed between the last byte and the rename."""
    await killed_at(tmp_path, len(BLOB) - 1)
    path = tmp_path / "partial" / DIGEST.encoded
    path.write_bytes(BLOB)
    with record_of(tmp_path).open("a") as record:
        record.write(f"prefix {len(BLOB)} {DIGEST.encoded}\n")
    origin = MemoryOrigin(content=BLOB)
    place = await fetched_again(tmp_path, origin)

    assert origin.reads == []
    await place.close()


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("wrong_at", "kept_below"),
    [(0, 0), (100_000, 0), (3_000_000, 3_000_000), (4_400_000, 4_400_000)],
)
async def test_a_bad_prefix_is_thrown_away(tmp_path: Path, wrong_at: int, kept_below: int) -> None:
    """C13, I2: a bit flipped on the disk costs what lies behind the last right claim, never the pull."""
    first = await killed_at(tmp_path, 4_500_000)
    flip(tmp_path / "partial" / DIGEST.encoded, wrong_at)
    origin = MemoryOrigin(content=BLOB)
    place = await fetched_again(tmp_path, origin)

    assert origin.sent_bytes >= len(BLOB) - kept_below
    assert origin.sent_bytes <= len(BLOB) - kept_below + NOTED_EVERY + (1 << 20)
    assert first in origin.reads
    await place.close()


async def test_bytes_that_the_machine_never_wrote_are_not_believed(tmp_path: Path) -> None:
    """C13, I2: after a power cut the record may be there and the bytes not: zeros, or a shorter file."""
    for cut in ("zeros", "short"):
        state_dir = tmp_path / cut
        state_dir.mkdir()
        await killed_at(state_dir, 4_500_000)
        path = state_dir / "partial" / DIGEST.encoded
        content = path.read_bytes()[:2_000_000]
        path.write_bytes(content + bytes(2_500_000) if cut == "zeros" else content)
        place = await fetched_again(state_dir, MemoryOrigin(content=BLOB))
        await place.close()


def longer(path: Path, record: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(len(BLOB)))
    del record


def of_another_size(path: Path, record: Path) -> None:
    record.write_text(record.read_text().replace(str(len(BLOB)), str(len(BLOB) + 7)))
    del path


def without_a_record(path: Path, record: Path) -> None:
    record.unlink()
    del path


def with_a_record_of_nonsense(path: Path, record: Path) -> None:
    record.write_bytes(b"\0" * 4096)
    del path


def a_directory(path: Path, record: Path) -> None:
    path.unlink()
    path.mkdir()
    record.unlink()


@pytest.mark.parametrize(
    "spoil",
    [longer, of_another_size, without_a_record, with_a_record_of_nonsense],
    ids=lambda each: each.__name__,
)
async def test_what_cannot_be_this_blob_is_begun_anew(
    tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    """C13, I1: whatever lies in `partial`, the blob is fetched and nothing remains."""
    await killed_at(tmp_path, 1_000_000)
    spoil(tmp_path / "partial" / DIGEST.encoded, record_of(tmp_path))
    place = await fetched_again(tmp_path, MemoryOrigin(content=BLOB))
    await place.close()


async def test_a_directory_in_the_place_of_a_partial_blob_costs_the_store_only(tmp_path: Path) -> None:
    """I1: nonsense in the state directory never fails a pull."""
    await killed_at(tmp_path, 1_000_000)
    a_directory(tmp_path / "partial" / DIGEST.encoded, record_of(tmp_path))
    place = Place(tmp_path)

    assert await Reader(await place.fetches.join(DIGEST, MemoryOrigin(content=BLOB))).to_end() == BLOB
    await place.close()


async def test_an_origin_that_ignores_range_is_skipped_to_what_is_missing(tmp_path: Path) -> None:
    """C12, C13: it starts over, what is on the disk is not written again."""
    first = await killed_at(tmp_path, 1_000_000)
    origin = MemoryOrigin(content=BLOB, ignores_range=True)
    place = await fetched_again(tmp_path, origin)

    assert origin.reads == [first]
    await place.close()


async def test_what_a_failing_origin_gave_is_kept_for_the_next_attempt(tmp_path: Path) -> None:
    """C12, C13: also in the same process; when it is well again, only the rest is asked for."""
    place = Place(tmp_path)
    origin = MemoryOrigin(content=BLOB, always_cut_at=3_000_000)
    await place.fetches.join(DIGEST, origin)
    await place.idle()
    assert [end.ending for end in place.ends] == ["broken"]
    origin.always_cut_at = None
    origin.reads.clear()

    assert await Reader(await place.fetches.join(DIGEST, origin)).to_end() == BLOB
    assert origin.reads == [3_000_000]
    await place.close()


async def test_a_refusal_of_the_rest_is_the_readers_to_see(tmp_path: Path) -> None:
    """C15: bytes on the disk are nobody's right: the origin is asked first, and what it says counts."""
    await killed_at(tmp_path, 1_000_000)
    place = Place(tmp_path)
    origin = MemoryOrigin(content=BLOB, refusals=[OriginRefused(404)])
    with pytest.raises(OriginRefused):
        await place.fetches.join(DIGEST, origin)

    assert (tmp_path / "partial" / DIGEST.encoded).exists()
    await place.close()


async def test_ranges_that_were_fetched_are_taken_up_too(tmp_path: Path) -> None:
    """C10, C13: a lazy snapshotter's extents survive, each verified by itself."""
    place = Place(tmp_path, quiet_s=60)
    origin = MemoryOrigin(content=BLOB)
    for first in (4_000_000, 2_000_000, 3_000_000):
        transfer = await place.fetches.join(DIGEST, origin, Closed(first, first + 99_999))
        await Reader(transfer, Extent(first, first + 99_999), hold_tail=False).to_end()
    await place.close()
    flip(tmp_path / "partial" / DIGEST.encoded, 2_000_123)

    again = MemoryOrigin(content=BLOB)
    resumed = await fetched_again(tmp_path, again)
    # Short stretches are read through; that the right one was taken up shows in what is counted.
    assert [end.healed for end in resumed.ends] == [{"restart": 1}]
    await resumed.close()


async def test_a_resume_by_the_client_begins_where_the_disk_ends(tmp_path: Path) -> None:
    """C10, C13: containerd comes back with `bytes=N-` while the agent starts anew."""
    first = await killed_at(tmp_path, 3_000_000)
    place = Place(tmp_path)
    origin = MemoryOrigin(content=BLOB)
    transfer = await place.fetches.join(DIGEST, origin, From(1_500_000))
    reader = Reader(transfer, Extent(1_500_000, len(BLOB) - 1))

    assert await reader.to_end() == BLOB[1_500_000:]
    assert origin.reads == [first]
    await place.close()


async def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    """C13, I2: during an upgrade the old process may still be filling what the new one is asked for."""
    old = Place(tmp_path)
    slow = MemoryOrigin(content=BLOB, pause_at=2_000_000)
    reading = await old.fetches.join(DIGEST, slow)
    await until(lambda: slow.sent_bytes >= 2_000_000)
    await until(lambda: claimed(tmp_path) > 0)
    new = Place(tmp_path)
    origin = MemoryOrigin(content=BLOB)

    assert await Reader(await new.fetches.join(DIGEST, origin)).to_end() == BLOB
    assert origin.reads == [0]
    slow.resume.set()
    assert await Reader(reading).to_end() == BLOB
    await old.idle()
    await new.idle()
    assert new.has(DIGEST)
    await old.close()
    await new.close()
