"""What the store and the fetch make of a real disk that fails: pulls go on, nothing wrong is kept."""

import asyncio
import ctypes
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from contract.small_disk import ext4_disk, fill, small_disk
from tidegate_core.errors import StartRefused
from tidegate_proxy.fetching.origin import OriginRefused
from tidegate_proxy.fetching.tail import TAIL_BYTES
from tidegate_proxy.oci.byte_range import Extent
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.store import DigestMismatch, Durability, Store
from unit.proxy.memory_origin import MemoryOrigin
from unit.proxy.place import Place
from unit.proxy.reader import Reader, until

DISK = 4 << 20
BLOB = random.Random(3).randbytes(6_000_000)
DIGEST = Digest.of(BLOB)
SIZE = len(BLOB)
Mounted = Callable[[AbstractContextManager[Path]], Path]


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """Enters a disk for the length of the test, or skips where none can be mounted."""
    with ExitStack() as disks:

        def enter(disk: AbstractContextManager[Path]) -> Path:
            try:
                return disks.enter_context(disk)
            except OSError as error:
                pytest.skip(f"no disk can be mounted here: {error}")

        yield enter


@pytest.fixture
def disk(mounted: Mounted) -> Path:
    return mounted(small_disk(size_bytes=DISK))


@pytest.fixture
async def place(disk: Path) -> AsyncIterator[Place]:
    place = Place(disk)
    yield place
    await place.close()


def _origin(content: bytes = BLOB, *, told: bool = True, pause_at: int | None = None) -> MemoryOrigin:
    return MemoryOrigin(content=content, size_told=SIZE if told else None, pause_at=pause_at)


EXTENTS = {
    "the whole": None,
    "a resume near the start": Extent(10, SIZE - 1),
    "a resume past what was written": Extent(5_000_000, SIZE - 1),
    "a resume within the tail": Extent(SIZE - 10, SIZE - 1),
    "a range that was written": Extent(1000, 70_000),
    "a range across the end of the disk": Extent(3_000_000, 5_500_000),
    "a range past what was written": Extent(5_000_000, 5_000_100),
}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("free", [0, 100_000, TAIL_BYTES, 3 << 20])
async def test_a_full_disk_fails_no_reader(place: Place, disk: Path, free: int, told: bool) -> None:
    """I1: full at the start or on the way, readers at every offset: each ends with the right bytes."""
    fill(disk, leave_bytes=free)
    origin = _origin(told=told)
    extents = {name: each for name, each in EXTENTS.items() if told or each is None}
    joined = {name: await place.fetches.join(DIGEST, origin) for name in extents}
    readers = {
        name: Reader(joined[name], each, hold_tail=each is None or each.last == SIZE - 1)
        for name, each in extents.items()
    }
    got = await asyncio.gather(*(reader.to_end() for reader in readers.values()))

    for name, content in zip(readers, got, strict=True):
        extent = extents[name] or Extent(0, SIZE - 1)
        assert content == BLOB[extent.first : extent.last + 1], name
    await place.idle()
    assert place.nothing_remains_of(DIGEST)
    assert {end.ending for end in place.ends} == {"unstored"}
    assert origin.open_bodies == 0


async def test_readers_standing_at_different_offsets_all_go_on(place: Place) -> None:
    """I1: the disk fills up while one reader has read all, one a piece and one nothing."""
    origin = _origin(pause_at=3_500_000)
    fast, slow, late = [Reader(await place.fetches.join(DIGEST, origin)) for _ in range(3)]
    slow.go_on.clear()
    readings = [asyncio.create_task(reader.to_end()) for reader in (fast, slow)]
    await until(lambda: len(fast.received) == 3_500_000 and len(slow.received) > 0)
    origin.resume.set()
    await until(lambda: bool(place.ends))
    slow.go_on.set()
    readings.append(asyncio.create_task(late.to_end()))

    assert await asyncio.gather(*readings) == [BLOB] * 3
    await place.idle()
    assert place.nothing_remains_of(DIGEST)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("position", [0, 2_000_000, 5_000_000, SIZE - 1])
@pytest.mark.parametrize("first", [0, 1_000_000, 5_500_000])
async def test_corrupt_data_never_completes_on_a_full_disk(
    place: Place, position: int, first: int, told: bool
) -> None:
    """I2: a reader that goes on alone verifies the whole too, whichever part of it was written."""
    corrupt = BLOB[:position] + bytes([BLOB[position] ^ 1]) + BLOB[position + 1 :]
    origin = _origin(corrupt, told=told)
    extent = Extent(first, SIZE - 1) if told and first else None
    reader = Reader(await place.fetches.join(DIGEST, origin), extent)

    with pytest.raises(DigestMismatch):
        await reader.to_end()
    sent_up_to = (extent.first if extent else 0) + len(reader.received)
    assert sent_up_to <= max(first, SIZE - TAIL_BYTES)
    await place.idle()
    assert place.nothing_remains_of(DIGEST)


async def test_a_reader_that_goes_on_alone_asks_for_the_rest_only(place: Place, disk: Path) -> None:
    """What was fetched before the disk was full is not fetched again."""
    origin = _origin()
    reader = Reader(await place.fetches.join(DIGEST, origin))
    assert await reader.to_end() == BLOB

    first, own = origin.reads
    assert first == 0
    assert own > 1_000_000


async def test_a_reader_that_goes_on_alone_heals_its_origin_too(place: Place, disk: Path) -> None:
    """C12: cut after the disk was full: resumed with Range, like a fetch."""
    fill(disk)
    origin = _origin()
    transfer = await place.fetches.join(DIGEST, origin)
    await place.idle()
    origin.refusals = [OriginRefused(503)]
    origin.cuts = [10, SIZE - 1]

    assert await Reader(transfer).to_end() == BLOB
    assert origin.reads == [0, 0, 0, 10, SIZE - 1]


async def test_storing_is_tried_again_once_there_is_space(place: Place, disk: Path) -> None:
    """A full disk is not remembered: the next fetch is stored."""
    content = BLOB[:1_000_000]
    digest = Digest.of(content)
    ballast = fill(disk)
    await Reader(await place.fetches.join(digest, MemoryOrigin(content=content))).to_end()
    await place.idle()
    assert not place.has(digest)
    ballast.unlink()

    await Reader(await place.fetches.join(digest, MemoryOrigin(content=content))).to_end()
    await place.idle()
    assert place.has(digest)


async def test_a_manifest_on_a_full_disk_is_simply_not_stored(place: Place, disk: Path) -> None:
    """I1: the caller has the bytes and serves them."""
    fill(disk)

    assert await place.store.put(Digest.of(b"manifest"), b"manifest") is False
    assert place.nothing_remains_of(Digest.of(b"manifest"))


@pytest.mark.parametrize("recreated", ["nothing", "the state directory"])
async def test_a_state_directory_removed_mid_way_fails_no_reader(tmp_path: Path, recreated: str) -> None:
    """I1: the open file keeps the bytes; only its name is gone. The next one goes to new directories."""
    place = Place(tmp_path / "state")
    origin = _origin(pause_at=3_000_000)
    readers = [Reader(await place.fetches.join(DIGEST, origin)) for _ in range(2)]
    readings = [asyncio.create_task(reader.to_end()) for reader in readers]
    await until(lambda: len(readers[0].received) == 3_000_000)
    shutil.rmtree(tmp_path / "state")
    if recreated != "nothing":
        (tmp_path / "state").mkdir()
    origin.resume.set()

    assert await asyncio.gather(*readings) == [BLOB] * 2
    await place.idle()
    assert not place.has(DIGEST)
    assert [end.ending for end in place.ends] == ["unstored"]
    assert origin.reads == [0]
    late = await place.fetches.join(DIGEST, origin)
    assert await Reader(late).to_end() == BLOB
    await place.idle()
    assert place.has(DIGEST)
    await place.close()


async def test_nothing_grows_under_a_mount_point_whose_file_system_has_gone(
    tmp_path: Path, mounted: Mounted
) -> None:
    """A cache on a disk that was unmounted must not fill the one below."""
    disk = mounted(small_disk(size_bytes=DISK))
    (disk / "state").mkdir()
    store = Store.open(disk / "state")
    (tmp_path / "elsewhere").mkdir()
    store.state_dir = tmp_path / "elsewhere"  # another file system is at the same name now
    shutil.rmtree(disk / "state" / "partial")

    assert not await store.put(Digest.of(b"manifest"), b"manifest")
    assert not (disk / "state" / "partial").exists()
    store.close()


async def test_bytes_the_kernel_could_not_write_out_get_no_name(mounted: Mounted) -> None:
    """I2: fsync fails after the tail was released: what the page cache shows may be lost and is not kept."""
    place = Place(mounted(ext4_disk(size_bytes=64 << 20, backed_bytes=8 << 20)), durability="fsync")
    content = BLOB * 4
    digest = Digest.of(content)
    origin = MemoryOrigin(content=content)
    fast, slow = [Reader(await place.fetches.join(digest, origin)) for _ in range(2)]
    slow.go_on.clear()
    stopped = asyncio.create_task(slow.to_end())

    assert await fast.to_end() == content
    await place.idle()
    assert [end.ending for end in place.ends] == ["unstored"]
    assert place.nothing_remains_of(digest)
    slow.go_on.set()
    assert await stopped == content
    assert origin.reads == [0, 0]
    await place.close()


def test_a_directory_that_cannot_be_written_is_refused_at_the_start(mounted: Mounted) -> None:
    """Refuse to start while somebody is there to read why, and say what to type."""
    disk = mounted(small_disk(size_bytes=DISK, options="ro"))
    with pytest.raises(StartRefused) as refusal:
        Store.open(disk / "tidegate")

    assert "Read-only" in refusal.value.cause
    assert "state_dir" in refusal.value.next_step


async def test_a_disk_that_is_full_at_the_start_is_no_reason_to_refuse(disk: Path) -> None:
    """I1: the agent starts, serves and steers; it stores once there is space."""
    (disk / "state").mkdir()
    ballast = fill(disk)
    said: list[str] = []
    place = Place(disk / "state")
    index = Index.open(disk / "state" / "index.sqlite", say=said.append)

    assert await Reader(await place.fetches.join(DIGEST, _origin())).to_end() == BLOB
    await index.mark_private("docker.io", "acme/secret")
    assert await index.public_checked_at("docker.io", "acme/secret") is None
    assert len(said) == 1
    ballast.unlink()
    assert await place.store.put(Digest.of(b"manifest"), b"manifest")
    await index.close()
    await place.close()


class _CacheStatRange(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recent")
    )


def _unwritten_pages(path: Path) -> int:
    """Pages of the file that only memory has: cachestat(2), Linux 6.5."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = _CacheStat()
    with path.open("rb") as file:
        if libc.syscall(451, file.fileno(), ctypes.byref(_CacheStatRange(0, 0)), ctypes.byref(result), 0):
            pytest.skip(f"no cachestat: {os.strerror(ctypes.get_errno())}")
    return int(result.dirty + result.writeback)


@pytest.mark.parametrize("durability", ["fsync", "relaxed"])
async def test_durability_says_whether_a_named_blob_is_on_disk(
    mounted: Mounted, durability: Durability
) -> None:
    """`durability = "fsync"` leaves nothing to lose in a power cut; `relaxed` leaves it to the kernel."""
    disk = mounted(ext4_disk(size_bytes=16 << 20, backed_bytes=32 << 20))
    place = Place(disk, durability=durability)
    await Reader(await place.fetches.join(DIGEST, _origin())).to_end()
    await place.idle()

    path = disk / "blobs" / "sha256" / DIGEST.encoded[:2] / DIGEST.encoded
    assert (_unwritten_pages(path) == 0) == (durability == "fsync")
    await place.close()
