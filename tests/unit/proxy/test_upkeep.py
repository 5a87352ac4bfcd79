"""What the store does over time, on a real directory: surveys, and evicts down to its limits."""

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.catalogue import Entry
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.limits import Limits
from tidegate_proxy.storage.store import Store
from tidegate_proxy.storage.upkeep import Upkeep
from unit.proxy.memory_origin import MemoryOrigin
from unit.proxy.place import Place
from unit.proxy.reader import Reader, until

LAYERS = [random.Random(seed).randbytes(10_000) for seed in range(20)]
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[1],
        "config": {"mediaType": "application/x", "digest": str(Digest.of(b"c")), "size": 1},
        "layers": [],
    }
).encode()
NO_LIMIT = Limits(max_size_bytes=1 << 60, min_free_bytes=0)


class Cache:
    """A store and its index, with the upkeep under test."""

    def __init__(self, state_dir: Path, limits: Limits = NO_LIMIT) -> None:
        self.said: list[str] = []
        self.store = Store.open(state_dir, durability="relaxed")
        self.index = Index.open(state_dir / "index.sqlite")
        self.store.stored = self.index.catalogue.stored
        self.upkeep = Upkeep(self.store, self.index, limits, say=self.said.append)

    @property
    def usage(self) -> tuple[int, int]:
        usage = self.index.catalogue.usage
        return usage.blobs, usage.stored_bytes

    async def put(self, *contents: bytes) -> list[Digest]:
        for content in contents:
            await self.store.put(Digest.of(content), content)
        return [Digest.of(content) for content in contents]

    def holds(self, *contents: bytes) -> list[bool]:
        return [self.store.holds(Digest.of(content)) for content in contents]

    async def close(self) -> None:
        await self.index.close()
        self.store.close()


def names_below(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


async def _entry(cache: Cache, digest: Digest) -> Entry:
    entry = await cache.index.catalogue.entry(digest)
    assert entry is not None
    return entry


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    cache = Cache(tmp_path, Limits(max_size_bytes=100_000, min_free_bytes=0))
    yield cache
    await cache.close()


async def test_the_least_recently_used_go_down_to_nine_tenths(cache: Cache, tmp_path: Path) -> None:
    """C14: at the limit nothing goes; past it the oldest uses go, and the figures are exact."""
    digests = await cache.put(*LAYERS[:10])
    await cache.upkeep.make_room()
    assert cache.usage == (10, 100_000)
    (blob := cache.store.blob(digests[0])) and blob.close()
    cache.index.touch(digests[0], (await _entry(cache, digests[9])).last_use)
    await cache.put(LAYERS[10])
    await cache.upkeep.make_room()

    assert cache.holds(*LAYERS[:11]) == [True, False, False, *[True] * 8]
    assert cache.usage == (9, 90_000)
    assert cache.index.catalogue.usage.evicted_bytes == 20_000
    assert len(names_below(tmp_path / "blobs")) == 9


async def test_a_blob_that_is_read_is_passed_over(cache: Cache) -> None:
    """C14: a blob in use is never broken, and would free nothing."""
    digests = await cache.put(*LAYERS[:10])
    blob = cache.store.blob(digests[0])
    assert blob is not None
    await cache.put(LAYERS[10])
    await cache.upkeep.make_room()

    assert cache.holds(*LAYERS[:4]) == [True, False, False, True]
    assert await blob.content() == LAYERS[0]


async def test_hundreds_go_in_bounded_batches(cache: Cache) -> None:
    """C14, I8: as many as need be, so many at a time."""
    for number in range(1000):
        await cache.put(b"%06d" % number * 50)
    await cache.upkeep.make_room()

    assert cache.usage == (300, 90_000)
    assert cache.holds(b"000699" * 50, b"000700" * 50) == [False, True]


async def test_a_blob_of_nearly_all_the_cache_is_kept(cache: Cache) -> None:
    """C14: it is larger than nine tenths, and within the limit."""
    await cache.put(LAYERS[0], large := bytes(95_000))
    await cache.upkeep.make_room()

    assert cache.holds(LAYERS[0], large) == [False, True]


async def test_partial_files_count(cache: Cache, tmp_path: Path) -> None:
    """C14: what is being fetched takes space, holes do not; what is too large to be kept asks for none."""
    await cache.put(*LAYERS[:8])
    (tmp_path / "partial" / "being-fetched").write_bytes(b"x" * 30_000)
    with (tmp_path / "partial" / "sparse").open("wb") as file:
        file.truncate(90_000)
    with (tmp_path / "partial" / "too-large").open("wb") as file:
        file.write(b"x" * 200_000)
    await cache.upkeep.make_room()

    assert 5 <= cache.usage[0] <= 6


async def test_what_cannot_be_removed_is_passed_over(cache: Cache) -> None:
    """I1: a directory in a blob's place, say; the rest goes, and nothing loops."""
    digests = await cache.put(*LAYERS[:11])
    path = cache.store.path(digests[0])
    path.unlink()
    path.mkdir()
    await cache.upkeep.make_room()

    assert path.is_dir()
    assert cache.holds(*LAYERS[1:4]) == [False, False, True]


async def test_rows_without_files_are_forgotten_when_it_is_their_turn(cache: Cache) -> None:
    """C14: somebody removed blobs by hand: nothing else goes for them."""
    digests = await cache.put(*LAYERS[:11])
    for digest in digests[:2]:
        cache.store.path(digest).unlink()
    await cache.upkeep.make_room()

    assert cache.usage == (9, 90_000)
    assert cache.index.catalogue.usage.evicted_bytes == 0
    assert cache.holds(*LAYERS[2:11]) == [True] * 9


async def test_a_survey_finds_what_a_lost_index_forgot(tmp_path: Path) -> None:
    """C14, C4: blobs as old as their files say, manifests as what they are; tags are learned again."""
    cache = Cache(tmp_path)
    layers = await cache.put(*LAYERS[:5])
    [manifest] = await cache.put(MANIFEST)
    [config] = await cache.put(json.dumps({"architecture": "amd64", "os": "linux"}).encode())
    for age, digest in enumerate(reversed(layers)):
        os.utime(cache.store.path(digest), (1_700_000_000 + age, 1_600_000_000))
    os.utime(cache.store.path(manifest), (9_999_999_999, 9_999_999_999))
    await cache.close()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    cache = Cache(tmp_path)
    assert cache.usage == (0, 0)
    assert cache.index.catalogue.wants_survey
    await cache.upkeep.survey()

    sizes = [cache.store.path(digest).stat().st_size for digest in (*layers, manifest, config)]
    assert cache.usage == (7, sum(sizes))
    oldest = [entry.digest for entry in await cache.index.catalogue.oldest(10)]
    assert oldest[:5] == layers[::-1]
    described = await cache.index.descriptor(manifest)
    assert described is not None
    assert (described.media_type, described.size_bytes) == (MANIFEST_TYPES[1], len(MANIFEST))
    assert await cache.index.descriptor(config) is None
    assert (await _entry(cache, manifest)).manifest
    assert not cache.index.catalogue.wants_survey
    assert cache.said == ["the index did not know 7 blobs of the store, 1 of them manifests: it does now"]
    await cache.close()


async def test_a_survey_forgets_what_is_gone(tmp_path: Path) -> None:
    """C14: what the index knows and the store lacks, in folders that are there and in one that is not."""
    cache = Cache(tmp_path)
    digests = await cache.put(*LAYERS)
    for digest in digests[:7]:
        cache.store.path(digest).unlink()
        with suppress(OSError):
            cache.store.path(digest).parent.rmdir()
    await cache.upkeep.survey()

    assert cache.usage == (13, 130_000)
    assert cache.said == []
    await cache.close()


async def test_a_survey_forgets_a_whole_algorithm(tmp_path: Path) -> None:
    """C14: `rm -r blobs` of a stopped agent."""
    cache = Cache(tmp_path)
    await cache.put(*LAYERS)
    shutil.rmtree(tmp_path / "blobs" / "sha256")
    await cache.upkeep.survey()

    assert cache.usage == (0, 0)
    await cache.close()


async def test_a_survey_never_touches_what_it_cannot_identify(tmp_path: Path) -> None:
    """C14: other files, links and folders are told of, left alone and not counted."""
    cache = Cache(tmp_path)
    [digest] = await cache.put(LAYERS[0])
    folder = cache.store.path(digest).parent
    other = next(each for each in ("ab", "cd") if each != folder.name)
    foreign = [
        folder / "README",
        folder / f"{digest.encoded}.bak",
        folder / (other + digest.encoded[2:]),  # a digest, in another's folder
        folder.parent / "lost+found",
        folder.parent.parent / "sha999" / "ab" / "x",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody else's")
    link = folder / (folder.name + "0" * 62)
    link.symlink_to("/etc/passwd")
    await cache.upkeep.survey()

    assert cache.usage == (1, 10_000)
    assert all(path.read_bytes() == b"somebody else's" for path in foreign)
    assert link.is_symlink()
    assert cache.said == ["6 files among the blobs are none: left alone, and not counted"]
    await cache.close()


async def test_a_damaged_manifest_is_not_described_but_removed(tmp_path: Path) -> None:
    """I2: it reads as a manifest, and has another digest than its name."""
    cache = Cache(tmp_path)
    [digest] = await cache.put(MANIFEST)
    await cache.close()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    path = cache.store.path(digest)
    path.chmod(0o640)
    path.write_bytes(MANIFEST.replace(b'"size": 1', b'"size": 2'))
    cache = Cache(tmp_path)
    await cache.upkeep.survey()

    assert not path.exists()
    assert await cache.index.descriptor(digest) is None
    assert cache.usage == (0, 0)
    await cache.close()


async def test_surveys_of_what_is_known_read_no_blob(tmp_path: Path) -> None:
    """I8: a start over a known store costs names alone."""
    cache = Cache(tmp_path)
    digests = await cache.put(*LAYERS, MANIFEST)
    await cache.index.catalogue.settled()
    for digest in digests:
        os.utime(cache.store.path(digest), (1, 1))
    await cache.upkeep.survey()

    assert {cache.store.path(digest).stat().st_atime for digest in digests} == {1}
    assert cache.said == []
    await cache.close()


async def test_it_runs_by_itself(tmp_path: Path) -> None:
    """C14: surveyed at the start, and evicted soon after something was stored."""
    first = Cache(tmp_path)
    await first.put(*LAYERS[:5])
    await first.close()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    cache = Cache(tmp_path, Limits(max_size_bytes=100_000, min_free_bytes=0))
    running = asyncio.create_task(cache.upkeep.run(begin_after_s=0))
    await until(lambda: cache.usage == (5, 50_000))
    await cache.put(*LAYERS[5:12])
    cache.upkeep.look_soon()
    await until(lambda: cache.usage == (9, 90_000))

    await cache.put(*LAYERS[12:15])
    cache.upkeep.look_soon()
    await until(lambda: cache.holds(*LAYERS[3:15]) == [False] * 3 + [True] * 9, within_s=3)
    await until(lambda: cache.usage == (9, 90_000))  # the files go first, their rows a moment later

    running.cancel()
    await asyncio.wait([running])
    await cache.close()


@pytest.mark.parametrize("spare", [0, 1_000_000])
async def test_what_will_not_be_kept_drives_nothing_out(tmp_path: Path, spare: int) -> None:
    """C14, C11: larger than the cache, it is shared through the disk where there is space to spare only."""
    place = Place(tmp_path)
    place.store.largest_bytes, place.store.spare_bytes = 5_000, spare
    origin = MemoryOrigin(content=LAYERS[0])
    readers = [Reader(await place.fetches.join(Digest.of(LAYERS[0]), origin)) for _ in range(2)]

    assert [await reader.to_end() for reader in readers] == [LAYERS[0]] * 2
    assert (len(origin.reads) == 1) == (spare > 0)
    await place.idle()
    assert place.nothing_remains_of(Digest.of(LAYERS[0]))
    await place.close()
