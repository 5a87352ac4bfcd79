"""Ranges of a blob that is not there yet: what is wanted comes first, once, and the rest later."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tidegate_proxy.fetching.origin import OriginBroken, OriginRefused
from tidegate_proxy.oci.byte_range import Closed, Extent, From, RangeRequest, Suffix
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.store import DigestMismatch
from unit.proxy.memory_origin import MemoryOrigin
from unit.proxy.place import Place
from unit.proxy.reader import Reader, until

BLOB = random.Random(4).randbytes(12 * (1 << 20) + 777)
SIZE = len(BLOB)
DIGEST = Digest.of(BLOB)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    await place.close()


@pytest.fixture
async def lazy(tmp_path: Path) -> AsyncIterator[Place]:
    """Nothing is filled in the background."""
    place = Place(tmp_path, quiet_s=3600)
    yield place
    await place.close()


async def read(place: Place, origin: MemoryOrigin, wanted: RangeRequest) -> bytes:
    """What a client gets for a range, as `registry.blobs` answers it."""
    transfer = await place.fetches.join(DIGEST, origin, wanted)
    assert transfer.size_bytes == SIZE
    extent = wanted.resolve(SIZE)
    assert isinstance(extent, Extent)
    return await Reader(transfer, extent, hold_tail=isinstance(wanted, From)).to_end()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Closed(0, 99), slice(0, 100)),
        (Closed(5_000_000, 5_099_999), slice(5_000_000, 5_100_000)),
        (Suffix(100), slice(-100, None)),
        (Closed(SIZE - 10, SIZE + 1000), slice(-10, None)),
    ],
    ids=str,
)
async def test_a_range_of_a_cold_blob_costs_the_origin_that_range(
    lazy: Place, wanted: RangeRequest, expected: slice
) -> None:
    """C10: also a suffix, when nobody knows the size yet."""
    origin = MemoryOrigin(content=BLOB)

    assert await read(lazy, origin, wanted) == BLOB[expected]
    assert origin.reads == [str(wanted)]
    assert origin.sent_bytes == len(BLOB[expected])


async def test_a_footer_then_small_ranges_then_the_rest_each_byte_once(place: Place) -> None:
    """C10, I2: what a lazy snapshotter does, twice at once; in the end the blob is whole and verified."""
    origin = MemoryOrigin(content=BLOB)
    dice = random.Random(5)
    wanted: list[RangeRequest] = [
        Suffix(47),
        *(Closed(at, at + 9_999) for at in dice.sample(range(SIZE), 50)),
    ]
    wanted = [each for each in wanted if not isinstance(each, Closed) or each.last < SIZE]

    async def client() -> None:
        for each in wanted:
            extent = each.resolve(SIZE)
            assert isinstance(extent, Extent)
            assert await read(place, origin, each) == BLOB[extent.first : extent.last + 1]

    await asyncio.gather(client(), client())
    at_first = origin.sent_bytes
    assert at_first <= 51 * 10_000
    await place.idle()
    assert place.has(DIGEST)
    assert origin.sent_bytes == SIZE, "each byte once"
    assert [end.ending for end in place.ends] == ["stored"]


async def test_nothing_is_filled_while_ranges_are_read(place: Place) -> None:
    """C10: the rest waits until nobody has asked for a while: a reader never waits for what nobody wants."""
    origin = MemoryOrigin(content=BLOB)
    transfer = await place.fetches.join(DIGEST, origin, Closed(0, 999_999))
    slow = Reader(transfer, Extent(0, 999_999), hold_tail=False)
    slow.go_on.clear()
    reading = asyncio.create_task(slow.to_end())
    await until(lambda: len(slow.received) > 0)
    await asyncio.sleep(0.1)  # ten times as long as it waits when nobody reads

    assert origin.sent_bytes == 1_000_000
    slow.go_on.set()
    await reading
    await place.idle()
    assert place.has(DIGEST)


async def test_who_wants_the_whole_does_not_wait_for_quiet(lazy: Place) -> None:
    """C11: a pull in the middle of lazy reads; what is there is not fetched again."""
    origin = MemoryOrigin(content=BLOB)
    await read(lazy, origin, Closed(6_000_000, 8_999_999))

    assert await Reader(await lazy.fetches.join(DIGEST, origin)).to_end() == BLOB
    assert origin.sent_bytes == SIZE
    await lazy.idle()
    assert lazy.has(DIGEST)


async def test_a_herd_that_comes_in_the_middle_of_lazy_reads_is_served(lazy: Place) -> None:
    """C11: one after the other in successive turns of the loop; only the first has to hurry the fetch."""
    origin = MemoryOrigin(content=BLOB)
    await read(lazy, origin, Suffix(100))
    await asyncio.sleep(0.05)  # until the rest is put off

    async def client(turns: int) -> bytes:
        transfer = await lazy.fetches.join(DIGEST, origin)
        for _ in range(turns):
            await asyncio.sleep(0)
        return await Reader(transfer).to_end()

    assert set(await asyncio.gather(*(client(turns) for turns in range(20)))) == {BLOB}
    assert origin.sent_bytes == SIZE


async def test_short_stretches_are_read_through_when_the_whole_is_wanted(lazy: Place) -> None:
    """C10: a hundred tiny extents must not become a hundred requests."""
    origin = MemoryOrigin(content=BLOB)
    for first in range(0, SIZE - 1000, 500_000):
        await read(lazy, origin, Closed(first, first + 99))
    origin.reads.clear()

    assert await Reader(await lazy.fetches.join(DIGEST, origin)).to_end() == BLOB
    assert origin.reads == [100]


async def test_a_range_far_ahead_of_a_whole_does_not_wait_for_it(place: Place) -> None:
    """C10: the footer of a blob that somebody pulls at this moment."""
    origin = MemoryOrigin(content=BLOB, pause_at=1_000_000)
    pulling = asyncio.create_task(Reader(await place.fetches.join(DIGEST, origin)).to_end())
    await until(lambda: origin.sent_bytes >= 1_000_000)

    assert await read(place, origin, Closed(9_000_000, 9_000_099)) == BLOB[9_000_000:9_000_100]
    origin.resume.set()
    assert await pulling == BLOB
    assert origin.reads == [0, "bytes=9000000-9000099"]
    assert origin.sent_bytes <= SIZE + 100


async def test_a_range_just_ahead_of_a_whole_waits_for_it(place: Place) -> None:
    """C10: a request of its own would come later than the bytes."""
    origin = MemoryOrigin(content=BLOB, pause_at=1_000_000)
    pulling = asyncio.create_task(Reader(await place.fetches.join(DIGEST, origin)).to_end())
    await until(lambda: origin.sent_bytes >= 1_000_000)
    near = asyncio.create_task(read(place, origin, Closed(1_100_000, 1_100_099)))
    await asyncio.sleep(0.01)
    origin.resume.set()

    assert await near == BLOB[1_100_000:1_100_100]
    assert await pulling == BLOB
    assert origin.reads == [0]


async def test_readers_of_overlapping_ranges_share_them(lazy: Place) -> None:
    """C10, C11: while they are under way, too."""
    origin = MemoryOrigin(content=BLOB, pause_at=5_050_000)
    ranges = [Closed(5_000_000, 5_099_999), Closed(5_020_000, 5_119_999), Closed(5_020_000, 5_119_999)]
    reading = [asyncio.create_task(read(lazy, origin, each)) for each in ranges]
    await until(lambda: origin.sent_bytes >= 50_000)
    origin.resume.set()
    got = await asyncio.gather(*reading)

    assert got == [BLOB[each.first : each.last + 1] for each in ranges]
    assert origin.sent_bytes == 120_000


async def test_an_origin_without_ranges_still_serves_them(place: Place) -> None:
    """C10: it answers 200 with the whole, which is taken from front to back, once."""
    origin = MemoryOrigin(content=BLOB, ignores_range=True)
    wanted = [Suffix(100), Closed(5, 9), Closed(8_000_000, 8_000_099)]
    got = await asyncio.gather(*(read(place, origin, each) for each in wanted))

    assert got == [BLOB[-100:], BLOB[5:10], BLOB[8_000_000:8_000_100]]
    assert len(origin.reads) == 1
    assert origin.sent_bytes == SIZE


async def test_an_origin_that_stops_knowing_ranges_still_serves_them(lazy: Place) -> None:
    """C10: a second upstream answers, and that one ignores Range."""
    origin = MemoryOrigin(content=BLOB)
    await read(lazy, origin, Suffix(100))
    origin.ignores_range = True

    assert await read(lazy, origin, Closed(8_000_000, 8_000_099)) == BLOB[8_000_000:8_000_100]


async def test_a_range_past_the_end_is_told_from_the_size(place: Place) -> None:
    """C10: 416 of the origin is no refusal of the blob; the size says how to answer."""
    origin = MemoryOrigin(content=BLOB)
    transfer = await place.fetches.join(DIGEST, origin, Closed(SIZE, SIZE + 5))

    assert transfer.size_bytes == SIZE
    assert origin.reads == [f"bytes={SIZE}-{SIZE + 5}", 0]


async def test_a_range_of_unknown_size_becomes_the_whole(place: Place) -> None:
    """C10: `Content-Range: bytes 0-9/*` names no size, and an answer must."""
    origin = MemoryOrigin(content=BLOB, size_told=None)
    transfer = await place.fetches.join(DIGEST, origin, Closed(0, 9))

    assert transfer.size_bytes is None
    assert await Reader(transfer).to_end() == BLOB
    assert origin.reads == ["bytes=0-9", 0]


async def test_a_cut_range_is_resumed(lazy: Place) -> None:
    """C10, C12: by the range that is left of it."""
    origin = MemoryOrigin(content=BLOB, cuts=[5_050_000])

    assert await read(lazy, origin, Closed(5_000_000, 5_099_999)) == BLOB[5_000_000:5_100_000]
    assert origin.reads == ["bytes=5000000-5099999", "bytes=5050000-5099999"]


async def test_a_range_that_fails_is_not_the_end_of_the_others(lazy: Place) -> None:
    """C10, I1: its reader goes on alone, and is cut when that fails too; a pull that comes later succeeds."""
    origin = MemoryOrigin(content=BLOB)
    await read(lazy, origin, Suffix(100))
    origin.refusals = [OriginRefused(503)] * 20
    with pytest.raises(OriginBroken):
        await read(lazy, origin, Closed(5, 9))
    origin.refusals = []

    assert await read(lazy, origin, Closed(5, 9)) == BLOB[5:10]
    assert await Reader(await lazy.fetches.join(DIGEST, origin)).to_end() == BLOB


async def test_a_refused_range_is_a_refusal(place: Place) -> None:
    """C15: as it is of the whole."""
    with pytest.raises(OriginRefused):
        await read(place, MemoryOrigin(content=BLOB, refusals=[OriginRefused(404)]), Suffix(100))

    await place.idle()
    assert place.nothing_remains_of(DIGEST)


async def test_wrong_bytes_in_a_range_never_enter_the_store(place: Place) -> None:
    """I2: served as they came, found out in the background, thrown away; a whole that waits is cut."""
    bad = BLOB[:6_000_000] + b"wrong" + BLOB[6_000_005:]
    origin = MemoryOrigin(content=bad)
    assert await read(place, origin, Closed(6_000_000, 6_000_004)) == b"wrong"
    whole = Reader(await place.fetches.join(DIGEST, origin))
    with pytest.raises(DigestMismatch):
        await whole.to_end()

    await place.idle()
    assert place.nothing_remains_of(DIGEST)


async def test_a_resume_of_a_cold_blob_gets_its_bytes_first(place: Place) -> None:
    """C10: containerd goes on at N after everything was lost; its tail waits for what comes before N."""
    origin = MemoryOrigin(content=BLOB)

    assert await read(place, origin, From(9_000_000)) == BLOB[9_000_000:]
    assert origin.reads[0] == 9_000_000
    assert origin.sent_bytes == SIZE
    await place.idle()
    assert place.has(DIGEST)


async def test_background_fills_are_bounded_and_a_pull_passes_them(tmp_path: Path) -> None:
    """I8: at most two blobs are completed at a time; a third one that somebody wants whole does not queue."""
    place = Place(tmp_path, quiet_s=0)
    blobs = [random.Random(n).randbytes(3_000_000) for n in range(5)]
    stuck = [MemoryOrigin(content=blob, pause_at=1_000_000) for blob in blobs[:4]]
    for blob, origin in zip(blobs, stuck, strict=False):
        await place.fetches.join(Digest.of(blob), origin, Closed(0, 99))
    await until(lambda: sum(origin.sent_bytes >= 1_000_000 for origin in stuck) == 2)
    await asyncio.sleep(0.05)
    assert sum(origin.sent_bytes >= 1_000_000 for origin in stuck) == 2

    origin = MemoryOrigin(content=blobs[4])
    await place.fetches.join(Digest.of(blobs[4]), origin, Closed(0, 99))
    whole = Reader(await place.fetches.join(Digest.of(blobs[4]), origin))
    assert await whole.to_end() == blobs[4]
    await place.close()
