"""The catalogue: which blobs there are, in which order they were used; rows follow files."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, Descriptor
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.catalogue import MANIFEST_GRACE_S, Found
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.store import Store

A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))
FUTURE = datetime(2040, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[Index]:
    index = Index.open(tmp_path / "index.sqlite")
    yield index
    await index.close()


async def order(index: Index) -> list[Digest]:
    return [entry.digest for entry in await index.catalogue.oldest(10)]


def absent(digest: Digest) -> bool:
    return False


async def test_every_blob_counts_once(index: Index) -> None:
    """O1: the figures are exact, however often a blob is stored or found."""
    for _ in range(2):
        index.catalogue.stored(A, 10)
        await index.catalogue.found([Found(digest=each, size_bytes=10, last_use=0) for each in (A, B)])
    index.catalogue.stored(C, 5)
    await index.forget_missing([B, B], absent)

    assert (index.catalogue.usage.blobs, index.catalogue.usage.stored_bytes) == (2, 15)


async def test_the_figures_are_there_at_the_next_start(tmp_path: Path) -> None:
    """O1: a start does not count files to know what is stored."""
    index = Index.open(tmp_path / "index.sqlite")
    index.catalogue.stored(A, 10)
    index.catalogue.stored(B, 7)
    await index.close()
    index = Index.open(tmp_path / "index.sqlite")

    assert (index.catalogue.usage.blobs, index.catalogue.usage.stored_bytes) == (2, 17)
    await index.close()


async def test_the_order_is_that_of_use(index: Index) -> None:
    """C14: least recently used first; being stored is a use."""
    for digest in (A, B, C):
        index.catalogue.stored(digest, 1)
    assert await order(index) == [A, B, C]
    index.touch(A, FUTURE)
    assert await order(index) == [B, C, A]
    index.catalogue.stored(B, 1)
    assert await order(index) == [C, A, B]


@pytest.mark.parametrize("step", [DAY, -DAY, timedelta(days=20_000)])
async def test_a_stepped_clock_changes_no_order(tmp_path: Path, step: timedelta) -> None:
    """C14: the clock is set a day ahead and back, between uses and between runs: the order is that of use."""
    index = Index.open(tmp_path / "index.sqlite")
    for digest in (A, B, C):
        index.catalogue.stored(digest, 1)
    now = datetime.now(UTC)
    index.touch(B, now + step)
    index.touch(A, now)
    await index.close()
    index = Index.open(tmp_path / "index.sqlite")
    assert await order(index) == [C, B, A]
    index.touch(C, now - step)
    index.touch(B, now - 2 * step)

    assert await order(index) == [A, C, B]
    await index.close()


async def test_a_manifest_outlasts_layers_used_up_to_a_week_later(index: Index) -> None:
    """C14: it frees next to nothing, and the layers of its image are of no use without it."""
    week = timedelta(seconds=MANIFEST_GRACE_S)
    for digest in (A, B, C):
        index.catalogue.stored(digest, 1)
    await index.put_manifest(Descriptor(media_type=MANIFEST_TYPES[0], digest=A, size_bytes=1))
    index.touch(A, FUTURE)
    index.touch(B, FUTURE + week - DAY)
    index.touch(C, FUTURE + week + DAY)

    assert await order(index) == [B, A, C]
    assert [entry.manifest for entry in await index.catalogue.oldest(10)] == [False, True, False]


async def test_what_is_asked_for_is_no_more_than_that(index: Index) -> None:
    """I8: batches are bounded, of whatever kind the oldest are."""
    digests = [Digest.of(str(number).encode()) for number in range(20)]
    for number, digest in enumerate(digests):
        index.catalogue.stored(digest, 1)
        if number % 2:
            await index.put_manifest(Descriptor(media_type=MANIFEST_TYPES[0], digest=digest, size_bytes=1))

    assert [entry.digest for entry in await index.catalogue.oldest(4)] == digests[0:8:2]


async def test_entries_come_in_pages(index: Index) -> None:
    """C20: a listing reads so many at a time, and misses none."""
    digests = sorted((Digest.of(str(number).encode()) for number in range(25)), key=str)
    for digest in digests:
        index.catalogue.stored(digest, 3)
    pages = []
    after = None
    while page := await index.catalogue.entries(after=after, limit=10):
        pages.append(len(page))
        after = page[-1].digest
        assert [entry.digest for entry in page] == digests[sum(pages[:-1]) :][: len(page)]

    assert pages == [10, 10, 5]


async def test_a_blob_fetched_anew_while_it_is_evicted_keeps_its_row(tmp_path: Path, index: Index) -> None:
    """C14: its file is gone, then there again before the row goes: the row tells what is there."""
    store = Store.open(tmp_path / "state", durability="relaxed")
    store.stored = index.catalogue.stored
    digest = Digest.of(b"manifest")
    await store.put(digest, b"manifest")
    assert store.remove(digest) == 8
    await store.put(digest, b"manifest")
    await index.forget_missing([digest], store.holds)
    assert await index.catalogue.entry(digest) is not None

    store.remove(digest)
    await index.forget_missing([digest], store.holds)
    assert await index.catalogue.entry(digest) is None
    assert index.catalogue.usage.stored_bytes == 0
    store.close()


async def test_what_is_forgotten_is_described_no_more(index: Index) -> None:
    """I8: descriptors of what is gone do not pile up, in memory or in the file."""
    await index.put_manifest(Descriptor(media_type=MANIFEST_TYPES[0], digest=A, size_bytes=1))
    index.catalogue.stored(A, 1)
    await index.forget_missing([A], absent)

    assert await index.descriptor(A) is None


async def test_rows_that_no_digest_could_have_are_passed_over(tmp_path: Path) -> None:
    """A bit that flipped in the file costs one row, not the eviction."""
    index = Index.open(tmp_path / "index.sqlite")
    index.catalogue.stored(A, 1)
    await index.close()
    damaged = sqlite3.connect(tmp_path / "index.sqlite")
    damaged.execute("INSERT INTO blobs VALUES ('sha256:xyz', 1, 1.0, 0), ('', 1, 1e300, 0)")
    damaged.commit()
    damaged.close()
    index = Index.open(tmp_path / "index.sqlite")

    assert await order(index) == [A]
    await index.close()


async def test_a_lost_file_wants_a_survey(tmp_path: Path, index: Index) -> None:
    """Cut short under the running agent: what is there has to be found again."""
    index.catalogue.stored(A, 1)
    (await index.catalogue.survey_begins())()
    assert not index.catalogue.wants_survey
    with (tmp_path / "index.sqlite").open("r+b") as file:
        file.truncate(100)
    index.catalogue.stored(B, 1)
    await index.catalogue.entry(B)

    assert index.catalogue.wants_survey
    assert index.catalogue.usage.blobs == 1


async def test_what_is_stored_when_the_index_has_closed_waits_for_a_survey(tmp_path: Path) -> None:
    """A fetch may end after the index: nothing is raised in the store's thread."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.close()

    await asyncio.to_thread(index.catalogue.stored, A, 1)
