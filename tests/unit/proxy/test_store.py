"""The store: only verified bytes get a name, and no trouble with the disk becomes an exception of a pull."""

import asyncio
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate_core.errors import StartRefused
from tidegate_proxy.oci.byte_range import Extent
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.reading import PIECE_BYTES, BodyBroken
from tidegate_proxy.storage.store import DigestMismatch, Store

MANIFEST = b'{"schemaVersion": 2}'
BIG = random.Random(2).randbytes(2 * PIECE_BYTES + 5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path, durability="relaxed")
    yield store
    store.close()


def _descriptors_of(path: Path) -> int:
    return sum(entry.samefile(path) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


async def _content(store: Store, digest: Digest) -> bytes | None:
    blob = store.blob(digest)
    if blob is None:
        return None
    with blob:
        return await blob.content()


async def test_what_was_put_is_found_by_its_digest(store: Store, tmp_path: Path) -> None:
    """C1: `blobs/sha256/ab/<hex>`, read-only."""
    digest = Digest.of(MANIFEST)

    assert await store.put(digest, MANIFEST)
    assert await _content(store, digest) == MANIFEST
    path = tmp_path / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert not list((tmp_path / "partial").iterdir())


async def test_a_digest_mismatch_never_enters_the_store(store: Store) -> None:
    """I2: bytes are verified again where they get their name."""
    digest = Digest.of(MANIFEST)
    with pytest.raises(DigestMismatch):
        await store.put(digest, MANIFEST + b" ")

    assert store.blob(digest) is None


async def test_sha512_has_a_directory_of_its_own(store: Store, tmp_path: Path) -> None:
    """C24: other digest algorithms are stored under their own name."""
    hasher = Digest.parse("sha512:" + "0" * 128).hasher()
    hasher.update(MANIFEST)
    digest = Digest.parse(f"sha512:{hasher.hexdigest()}")

    assert await store.put(digest, MANIFEST)
    assert await _content(store, digest) == MANIFEST
    assert (tmp_path / "blobs" / "sha512").is_dir()


async def test_a_blob_is_read_in_extents_and_large_pieces(store: Store) -> None:
    """C10: any extent, in pieces of at most a mebibyte."""
    digest = Digest.of(BIG)
    await store.put(digest, BIG)
    blob = store.blob(digest)
    assert blob is not None
    with blob:
        pieces = [piece async for piece in blob.stream(Extent(3, len(BIG) - 2))]

    assert b"".join(pieces) == BIG[3:-1]
    assert max(len(piece) for piece in pieces) == PIECE_BYTES


async def test_readers_of_one_blob_share_a_descriptor_and_the_last_closes_it(
    store: Store, tmp_path: Path
) -> None:
    """I8: descriptors are bounded by the blobs being read, not by their readers."""
    digest = Digest.of(MANIFEST)
    await store.put(digest, MANIFEST)
    path = tmp_path / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded
    handles = [store.blob(digest) for _ in range(100)]

    assert _descriptors_of(path) == 1
    for handle in handles:
        assert handle is not None
        handle.close()
    assert _descriptors_of(path) == 0


async def test_a_blob_being_read_stays_readable_when_it_is_removed(store: Store, tmp_path: Path) -> None:
    """C14: eviction never takes bytes from a reader."""
    digest = Digest.of(BIG)
    await store.put(digest, BIG)
    blob = store.blob(digest)
    assert blob is not None
    (tmp_path / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded).unlink()

    with blob:
        assert await blob.content() == BIG


async def test_a_stored_file_that_was_cut_short_breaks_the_body(store: Store, tmp_path: Path) -> None:
    """I2: bytes that are gone are never made up for."""
    digest = Digest.of(BIG)
    await store.put(digest, BIG)
    blob = store.blob(digest)
    assert blob is not None
    os.truncate(tmp_path / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded, 100)

    with blob, pytest.raises(BodyBroken):
        await blob.content()


async def test_whoever_puts_the_same_manifest_at_once_stores_it_once(store: Store, tmp_path: Path) -> None:
    """I2: two writers of one digest never publish each other's unfinished file."""
    digest = Digest.of(BIG)
    results = await asyncio.gather(*(store.put(digest, BIG) for _ in range(16)))

    assert all(results)
    assert await _content(store, digest) == BIG
    assert not list((tmp_path / "partial").iterdir())


def test_a_partial_file_that_became_somebody_elses_is_not_published(store: Store) -> None:
    """I2: a name is given only to the very file whose bytes were verified."""
    digest = Digest.of(MANIFEST)
    mine, other = store.partial(digest), store.partial(digest)
    mine.write(0, MANIFEST)
    other.write(0, b"half of so")
    with pytest.raises(FileExistsError):
        mine.publish()

    assert store.blob(digest) is None


def test_leftovers_are_discarded_at_the_start_and_unknown_files_are_not(tmp_path: Path) -> None:
    """What an earlier process left half-done is not taken for anything; what is not ours is not touched."""
    partial = tmp_path / "partial"
    partial.mkdir()
    digest = Digest.of(MANIFEST)
    ours = [partial / digest.encoded, partial / f"{digest.encoded}.123.0"]
    foreign = [partial / "README", partial / digest.encoded.upper(), partial / f"{digest.encoded}.bak"]
    for path in [*ours, *foreign]:
        path.write_bytes(b"half")
    Store.open(tmp_path).close()

    assert set(partial.iterdir()) == set(foreign)


async def test_a_leftover_that_appears_later_is_overwritten(store: Store, tmp_path: Path) -> None:
    """A partial file under the same name is replaced, not appended to."""
    digest = Digest.of(MANIFEST)
    (tmp_path / "partial" / digest.encoded).write_bytes(b"x" * 1000)
    partial = store.partial(digest)
    partial.write(0, MANIFEST)
    partial.publish()

    assert await _content(store, digest) == MANIFEST


async def test_a_directory_in_the_place_of_a_blob_is_a_miss(store: Store, tmp_path: Path) -> None:
    """I1: nonsense in the state directory costs a fetch, not a pull."""
    digest = Digest.of(MANIFEST)
    (tmp_path / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded).mkdir(parents=True)

    assert store.blob(digest) is None
    assert await store.put(digest, MANIFEST) is False


async def test_an_emptied_state_directory_is_filled_again(store: Store, tmp_path: Path) -> None:
    """`rm -rf <state>/*` is how people clear a cache: the next blob is stored as if nothing had been."""
    for name in ("blobs", "partial"):
        (tmp_path / name).rename(tmp_path / f"removed-{name}")

    assert await store.put(Digest.of(MANIFEST), MANIFEST)
    assert await _content(store, Digest.of(MANIFEST)) == MANIFEST


async def test_a_state_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """`rm -rf` of all of it under the running agent: caching comes back by itself."""
    store = Store.open(tmp_path / "state", durability="relaxed")
    (tmp_path / "state").rename(tmp_path / "gone")

    assert await store.put(Digest.of(MANIFEST), MANIFEST)
    assert await _content(store, Digest.of(MANIFEST)) == MANIFEST
    store.close()


async def test_what_is_larger_than_the_cache_gets_no_name(store: Store, tmp_path: Path) -> None:
    """C14: it would evict everything else and then itself."""
    told: list[tuple[Digest, int]] = []
    store.stored = lambda *stored: told.append(stored)
    store.largest_bytes = len(MANIFEST)

    assert await store.put(Digest.of(MANIFEST), MANIFEST)
    assert not await store.put(Digest.of(BIG), BIG)
    assert store.blob(Digest.of(BIG)) is None
    assert told == [(Digest.of(MANIFEST), len(MANIFEST))]
    assert not list((tmp_path / "partial").iterdir())


async def test_a_removed_blob_is_served_to_those_alone_who_read_it(store: Store) -> None:
    """C14, C20: its bytes stay with its readers; who asks next gets none."""
    digest = Digest.of(BIG)
    await store.put(digest, BIG)
    blob = store.blob(digest)
    assert blob is not None
    assert store.is_read(digest)

    assert store.remove(digest) == len(BIG)
    assert store.blob(digest) is None
    assert not store.holds(digest)
    assert await blob.content() == BIG
    assert store.remove(digest) == 0


def test_a_state_directory_that_cannot_be_is_refused_with_what_to_type(tmp_path: Path) -> None:
    """A file is in the way: refuse to start, name the directory and the next step."""
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StartRefused) as refusal:
        Store.open(tmp_path / "state" / "tidegate")

    assert str(tmp_path / "state" / "tidegate") in refusal.value.cause
    assert "install -d" in refusal.value.next_step
