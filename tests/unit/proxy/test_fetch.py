"""Fetching: one flight for all readers, never a wrong byte completed, whoever fails or leaves."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate_proxy.fetching.fetch import Fetches
from tidegate_proxy.fetching.healing import Patience
from tidegate_proxy.fetching.origin import OriginBroken, OriginRefused, OriginUnreachable
from tidegate_proxy.fetching.spool import SPOOL_BYTES
from tidegate_proxy.fetching.tail import TAIL_BYTES
from tidegate_proxy.oci.byte_range import Extent, RangeRequest
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.store import DigestMismatch
from unit.proxy.memory_origin import MemoryBody, MemoryOrigin
from unit.proxy.place import HASTY, Place
from unit.proxy.reader import Reader, until

BIG = random.Random(1).randbytes(3 * (1 << 20) + 12_345)
MEDIUM = BIG[:300_000]
SMALL = BIG[:1000]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    await place.close()


def with_byte_flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("content", [b"", b"x", SMALL, BIG[:TAIL_BYTES], BIG[: TAIL_BYTES + 1], BIG])
@pytest.mark.parametrize("told", [True, False])
async def test_a_miss_is_streamed_and_stored(place: Place, content: bytes, told: bool) -> None:
    """C1: the reader gets the bytes while they are stored; the store then has them, verified."""
    origin = MemoryOrigin(content=content, size_told=len(content) if told else None)
    transfer = await place.fetches.join(Digest.of(content), origin)

    assert transfer.size_bytes == (len(content) if told else None)
    assert await Reader(transfer).to_end() == content
    await place.idle()
    stored = place.store.blob(Digest.of(content))
    assert stored is not None
    with stored:
        assert await stored.content() == content
    assert origin.reads == [0]
    assert origin.open_bodies == 0
    assert [end.ending for end in place.ends] == ["stored"]


@pytest.mark.parametrize("size", [1, 1000, TAIL_BYTES, TAIL_BYTES + 1, len(MEDIUM), len(BIG)])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("told", [True, False])
async def test_a_corrupt_body_never_completes_and_is_never_stored(
    place: Place, size: int, where: str, told: bool
) -> None:
    """I2: one flipped bit anywhere, with and without a length: the tail never leaves, nothing is kept."""
    content = BIG[:size]
    digest = Digest.of(content)
    bad = with_byte_flipped(content, {"first": 0, "middle": size // 2, "last": size - 1}[where])
    reader = Reader(
        await place.fetches.join(digest, MemoryOrigin(content=bad, size_told=size if told else None))
    )

    with pytest.raises(DigestMismatch):
        await reader.to_end()
    assert len(reader.received) <= max(0, size - TAIL_BYTES)
    await place.idle()
    assert place.nothing_remains_of(digest)
    assert [end.ending for end in place.ends] == ["mismatch"]


async def test_a_blob_smaller_than_the_tail_is_held_whole(place: Place) -> None:
    """I2: no byte of a small blob leaves before its digest has matched."""
    origin = MemoryOrigin(content=SMALL, pause_at=len(SMALL) - 1)
    reader = Reader(await place.fetches.join(Digest.of(SMALL), origin))
    reading = asyncio.create_task(reader.to_end())
    await until(lambda: origin.sent_bytes == len(SMALL) - 1)
    await until(lambda: _written(place, SMALL) == len(SMALL) - 1)

    assert not reader.received
    origin.resume.set()
    assert await reading == SMALL


async def test_bytes_before_the_tail_leave_as_they_arrive(place: Place) -> None:
    """C11: a reader waits for bytes, not for the end; only the tail waits."""
    origin = MemoryOrigin(content=MEDIUM, pause_at=len(MEDIUM) - 1)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), origin))
    reading = asyncio.create_task(reader.to_end())
    await until(lambda: len(reader.received) >= len(MEDIUM) - TAIL_BYTES)

    assert bytes(reader.received) == MEDIUM[: len(MEDIUM) - TAIL_BYTES]
    origin.resume.set()
    assert await reading == MEDIUM


async def test_without_a_length_the_newest_bytes_are_held(place: Place) -> None:
    """I2: where the size is unknown any byte may be among the last."""
    origin = MemoryOrigin(content=MEDIUM, size_told=None, pause_at=200_000)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), origin))
    reading = asyncio.create_task(reader.to_end())
    await until(lambda: _written(place, MEDIUM) == 200_000)
    await until(lambda: len(reader.received) >= 200_000 - TAIL_BYTES)

    assert bytes(reader.received) == MEDIUM[: 200_000 - TAIL_BYTES]
    origin.resume.set()
    assert await reading == MEDIUM


async def test_a_closed_range_leaves_before_the_digest_is_known(place: Place) -> None:
    """C10: what a lazy snapshotter asks for is served as it arrives, even out of the tail."""
    origin = MemoryOrigin(content=MEDIUM, pause_at=len(MEDIUM) - 1)
    transfer = await place.fetches.join(Digest.of(MEDIUM), origin)
    extent = Extent(len(MEDIUM) - 100, len(MEDIUM) - 50)

    assert await Reader(transfer, extent, hold_tail=False).to_end() == MEDIUM[-100:-49]
    origin.resume.set()


async def test_a_closed_range_that_is_the_whole_is_held(place: Place) -> None:
    """I2: `bytes=0-<last>` is a complete body by another name."""
    digest = Digest.of(MEDIUM)
    origin = MemoryOrigin(content=with_byte_flipped(MEDIUM, 5))
    transfer = await place.fetches.join(digest, origin)
    reader = Reader(transfer, Extent(0, len(MEDIUM) - 1), hold_tail=False)

    with pytest.raises(DigestMismatch):
        await reader.to_end()
    assert len(reader.received) <= len(MEDIUM) - TAIL_BYTES


@pytest.mark.parametrize("first", [0, 1, 150_000, len(MEDIUM) - TAIL_BYTES, len(MEDIUM) - 1])
@pytest.mark.parametrize("corrupt", [False, True])
async def test_a_resume_is_held_like_a_whole_body(place: Place, first: int, corrupt: bool) -> None:
    """C10, I2: containerd resumes with `bytes=N-`; its end completes a body, so it waits for the digest."""
    content = with_byte_flipped(MEDIUM, len(MEDIUM) - 1) if corrupt else MEDIUM
    transfer = await place.fetches.join(Digest.of(MEDIUM), MemoryOrigin(content=content))
    reader = Reader(transfer, Extent(first, len(MEDIUM) - 1), hold_tail=True)

    if corrupt:
        with pytest.raises(DigestMismatch):
            await reader.to_end()
        assert first + len(reader.received) <= max(first, len(MEDIUM) - TAIL_BYTES)
    else:
        assert await reader.to_end() == MEDIUM[first:]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("ignores_range", [False, True])
async def test_a_cut_body_is_resumed_at_the_next_missing_byte(
    place: Place, told: bool, ignores_range: bool
) -> None:
    """C12: cut at the start, in the middle and before the last byte; also by an origin that ignores Range."""
    cuts = [0, 1, 100_000, len(MEDIUM) - 1]
    origin = MemoryOrigin(
        content=MEDIUM,
        size_told=len(MEDIUM) if told else None,
        cuts=list(cuts),
        ignores_range=ignores_range,
    )
    patience = Patience(attempts=5, first_pause_s=0.001, longest_pause_s=0.002)
    patient = Place(place.state_dir / "patient", patience=patience)
    transfer = await patient.fetches.join(Digest.of(MEDIUM), origin)

    assert await Reader(transfer).to_end() == MEDIUM
    assert origin.reads == [0, *cuts]
    await patient.idle()
    assert patient.has(Digest.of(MEDIUM))
    await patient.close()


async def test_a_body_without_a_length_that_is_cut_at_its_end_is_complete(place: Place) -> None:
    """C12: the last chunk came but its terminator did not; the origin answers 416, the digest decides."""
    origin = MemoryOrigin(content=MEDIUM, size_told=None, cuts=[len(MEDIUM)])
    transfer = await place.fetches.join(Digest.of(MEDIUM), origin)

    assert await Reader(transfer).to_end() == MEDIUM
    assert origin.reads == [0, len(MEDIUM)]


async def test_an_origin_that_never_gets_further_is_given_up(place: Place) -> None:
    """I8, C12: attempts are bounded; the reader is cut, never ended well, and nothing is stored."""
    origin = MemoryOrigin(content=MEDIUM, always_cut_at=100_000)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), origin))

    with pytest.raises(OriginBroken):
        await reader.to_end()
    assert len(origin.reads) == 1 + HASTY.attempts
    assert bytes(reader.received) == MEDIUM[:100_000]
    await place.idle()
    assert not place.has(Digest.of(MEDIUM))


async def test_progress_renews_patience(place: Place) -> None:
    """C12: a long layer over a bad line may be cut more often than attempts in a row are allowed."""
    cuts = [(n + 1) * 600_000 for n in range(5)]
    patience = Patience(attempts=1, forgiven_after_bytes=500_000)
    patient = Place(place.state_dir / "patient", patience=patience)
    origin = MemoryOrigin(content=BIG, cuts=list(cuts))

    assert await Reader(await patient.fetches.join(Digest.of(BIG), origin)).to_end() == BIG
    assert origin.reads == [0, *cuts]
    await patient.close()


async def test_a_silent_origin_is_asked_again(place: Place) -> None:
    """C12: an origin that stalls without closing counts as cut."""
    patience = Patience(attempts=3, silence_s=0.05)
    impatient = Place(place.state_dir / "impatient", patience=patience)
    origin = MemoryOrigin(content=MEDIUM, pause_at=100_000, pauses_once=True)

    assert await Reader(await impatient.fetches.join(Digest.of(MEDIUM), origin)).to_end() == MEDIUM
    assert origin.reads == [0, 100_000]
    await impatient.close()


async def test_an_origin_that_promises_too_much_is_cut(place: Place) -> None:
    """Content-Length larger than the body: the promise cannot be kept, so the reader sees a cut."""
    origin = MemoryOrigin(content=MEDIUM, size_told=len(MEDIUM) + 7)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), origin))

    with pytest.raises(OriginBroken):
        await reader.to_end()
    await place.idle()
    assert not place.has(Digest.of(MEDIUM))


async def test_an_origin_that_promises_too_little_is_cut(place: Place) -> None:
    """Content-Length smaller than the blob: what fits the promise has another digest."""
    origin = MemoryOrigin(content=MEDIUM, size_told=len(MEDIUM) - 7)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), origin))

    with pytest.raises(DigestMismatch):
        await reader.to_end()
    assert len(reader.received) < len(MEDIUM) - 7
    await place.idle()
    assert place.nothing_remains_of(Digest.of(MEDIUM))


async def test_bytes_past_the_promised_size_are_not_taken(place: Place) -> None:
    """Garbage after the blob reaches neither the reader nor the store."""
    origin = MemoryOrigin(content=MEDIUM + b"garbage" * 9999, size_told=len(MEDIUM))
    transfer = await place.fetches.join(Digest.of(MEDIUM), origin)

    assert await Reader(transfer).to_end() == MEDIUM


async def test_an_origin_whose_size_changes_is_not_believed(place: Place) -> None:
    """C12: a resumed body of another size is another blob."""
    origin = MemoryOrigin(content=MEDIUM, cuts=[100_000])
    transfer = await place.fetches.join(Digest.of(MEDIUM), origin)
    origin.size_told = len(MEDIUM) + 1

    with pytest.raises(OriginBroken):
        await Reader(transfer).to_end()
    assert origin.open_bodies == 0


async def test_many_readers_share_one_read_of_the_origin(place: Place) -> None:
    """C11: single flight, for wholes and ranges, early and late."""
    origin = MemoryOrigin(content=BIG, pause_at=2_000_000)
    digest = Digest.of(BIG)
    extents = [None, Extent(5, 70_000), Extent(2_500_000, len(BIG) - 1), Extent(len(BIG) - 5, len(BIG) - 1)]
    early = [Reader(await place.fetches.join(digest, origin), extents[n % 4]) for n in range(20)]
    readings = [asyncio.create_task(reader.to_end()) for reader in early]
    await until(lambda: len(early[0].received) > 1_000_000)
    late = [Reader(await place.fetches.join(digest, origin), extents[n % 4]) for n in range(20)]
    readings += [asyncio.create_task(reader.to_end()) for reader in late]
    origin.resume.set()

    for n, got in enumerate(await asyncio.gather(*readings)):
        extent = extents[n % 4] or Extent(0, len(BIG) - 1)
        assert got == BIG[extent.first : extent.last + 1]
    assert origin.reads == [0, 2_500_000], "who resumes far ahead does not wait for all that comes before"
    assert origin.sent_bytes <= len(BIG) + origin.chunk_bytes, "and still each byte comes once"


async def test_readers_that_ask_at_the_same_moment_share_one_read(place: Place) -> None:
    """C11: also before the origin has answered the first."""
    origin = MemoryOrigin(content=MEDIUM)
    transfers = await asyncio.gather(*(place.fetches.join(Digest.of(MEDIUM), origin) for _ in range(50)))

    got = await asyncio.gather(*(Reader(transfer).to_end() for transfer in transfers))
    assert set(got) == {MEDIUM}
    assert origin.reads == [0]


async def test_a_fetch_goes_on_when_its_first_reader_leaves(place: Place) -> None:
    """C11: the first reader is cancelled in the middle; the second gets all, from the same read."""
    origin = MemoryOrigin(content=BIG, pause_at=1_500_000)
    first = Reader(await place.fetches.join(Digest.of(BIG), origin))
    second = Reader(await place.fetches.join(Digest.of(BIG), origin))
    leaving, staying = asyncio.create_task(first.to_end()), asyncio.create_task(second.to_end())
    await until(lambda: len(first.received) > 1_000_000)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    origin.resume.set()

    assert await staying == BIG
    assert origin.reads == [0]


async def test_a_fetch_goes_on_when_whoever_began_it_leaves_before_the_answer(place: Place) -> None:
    """C11: cancelled while it waits for the origin's answer, with nobody else there; the blob is stored."""
    origin = MemoryOrigin(content=MEDIUM, answer=asyncio.Event())
    joining = asyncio.create_task(place.fetches.join(Digest.of(MEDIUM), origin))
    await until(lambda: origin.reads == [0])
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert origin.answer is not None
    origin.answer.set()

    await place.idle()
    assert place.has(Digest.of(MEDIUM))


async def test_a_slow_reader_does_not_slow_the_fetch(place: Place) -> None:
    """C11: the fetch ends and the blob is stored while a reader still stands at its first piece."""
    origin = MemoryOrigin(content=BIG)
    slow = Reader(await place.fetches.join(Digest.of(BIG), origin))
    slow.go_on.clear()
    reading = asyncio.create_task(slow.to_end())
    await place.idle()

    assert place.has(Digest.of(BIG))
    assert len(slow.received) < len(BIG)
    slow.go_on.set()
    assert await reading == BIG


async def test_a_disk_that_hangs_holds_the_origin_back(place: Place) -> None:
    """I8: the fetch runs ahead on disk, never in memory."""
    origin = MemoryOrigin(content=BIG, pause_at=100_000)
    reading = asyncio.create_task(Reader(await place.fetches.join(Digest.of(BIG), origin)).to_end())
    await until(lambda: _written(place, BIG) == 100_000)
    disk_goes_on = threading.Event()
    try:
        hanging = [asyncio.create_task(place.store.run(disk_goes_on.wait)) for _ in range(8)]
        await asyncio.sleep(0)
        origin.resume.set()
        await until(lambda: origin.sent_bytes >= SPOOL_BYTES)
        for _ in range(1000):  # turns of the loop, each of which could take a chunk more
            await asyncio.sleep(0)

        assert origin.sent_bytes <= 100_000 + 2 * (SPOOL_BYTES + origin.chunk_bytes)
    finally:
        disk_goes_on.set()
    await asyncio.gather(*hanging)
    assert await reading == BIG


async def test_what_was_published_meanwhile_is_not_fetched_again(place: Place) -> None:
    """C11: a reader that missed and asks only after the fetch has ended costs no read."""
    origin = MemoryOrigin(content=MEDIUM)
    await Reader(await place.fetches.join(Digest.of(MEDIUM), origin)).to_end()
    await place.idle()

    late = await place.fetches.join(Digest.of(MEDIUM), origin)
    assert await Reader(late).to_end() == MEDIUM
    assert origin.reads == [0]


@dataclass(frozen=True)
class NamedOrigin:
    """Equal by name, as an origin is by registry, repository and right."""

    name: str
    behind: MemoryOrigin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedOrigin) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    async def read(self, wanted: RangeRequest) -> MemoryBody:
        return await self.behind.read(wanted)


async def test_a_refusal_is_shared_by_equal_origins_only(place: Place) -> None:
    """C15: who may not read spoils it for nobody who may."""
    refused = MemoryOrigin(content=MEDIUM, refusals=[OriginRefused(404), OriginRefused(404)])
    served = MemoryOrigin(content=MEDIUM)
    digest = Digest.of(MEDIUM)
    results = await asyncio.gather(
        place.fetches.join(digest, NamedOrigin("private", refused)),
        place.fetches.join(digest, NamedOrigin("private", refused)),
        place.fetches.join(digest, NamedOrigin("public", served)),
        return_exceptions=True,
    )

    assert [type(each) for each in results[:2]] == [OriginRefused, OriginRefused]
    assert refused.reads == [0]
    assert not isinstance(results[2], BaseException)
    assert await Reader(results[2]).to_end() == MEDIUM


async def test_an_unreachable_origin_is_told_and_asked_anew_the_next_time(place: Place) -> None:
    """A failed start leaves nothing behind."""
    origin = MemoryOrigin(content=MEDIUM, refusals=[OriginUnreachable("nobody there")])
    digest = Digest.of(MEDIUM)
    with pytest.raises(OriginUnreachable):
        await place.fetches.join(digest, origin)

    assert await Reader(await place.fetches.join(digest, origin)).to_end() == MEDIUM


async def test_a_fetch_too_many_is_served_but_not_stored(place: Place) -> None:
    """I8: the number of fetches at once is bounded, the number of pulls is not."""
    narrow = Place(place.state_dir / "narrow", fetches=1)
    first = MemoryOrigin(content=BIG, pause_at=1_000_000)
    leading = asyncio.create_task(Reader(await narrow.fetches.join(Digest.of(BIG), first)).to_end())
    second = MemoryOrigin(content=MEDIUM)

    assert await Reader(await narrow.fetches.join(Digest.of(MEDIUM), second)).to_end() == MEDIUM
    first.resume.set()
    assert await leading == BIG
    await narrow.idle()
    assert narrow.has(Digest.of(BIG))
    assert not narrow.has(Digest.of(MEDIUM))
    await narrow.close()


async def test_closing_lets_fetches_end_and_cuts_the_rest(place: Place) -> None:
    """A graceful stop: what ends within the time is stored, the rest is cut, and no task remains."""
    quick, stuck = MemoryOrigin(content=BIG), MemoryOrigin(content=MEDIUM, pause_at=200_000)
    await place.fetches.join(Digest.of(BIG), quick)
    reader = Reader(await place.fetches.join(Digest.of(MEDIUM), stuck))
    reading = asyncio.create_task(reader.to_end())
    await until(lambda: len(reader.received) > 0)
    await place.fetches.close(drain_s=1.0)

    with pytest.raises(OriginBroken):
        await reading
    assert place.has(Digest.of(BIG))
    assert stuck.open_bodies == 0
    with pytest.raises(OriginUnreachable):
        await place.fetches.join(Digest.of(SMALL), MemoryOrigin(content=SMALL))


async def test_closing_releases_a_reader_whose_fetch_never_ran(place: Place) -> None:
    """A task that is cancelled before its first step runs no code at all: the reader must not hang."""
    joining = asyncio.create_task(place.fetches.join(Digest.of(SMALL), MemoryOrigin(content=SMALL)))
    await asyncio.sleep(0)
    await place.fetches.close()

    async with asyncio.timeout(5):
        with pytest.raises(OriginUnreachable):
            await joining


class Bug(Exception):
    """Something no code expects."""


@pytest.mark.parametrize("where", ["read", "chunks"])
async def test_a_bug_in_an_origin_leaves_no_reader_waiting(place: Place, where: str) -> None:
    """I1: whatever happens to the fetch, its readers end, and the loop is told of the bug."""
    told: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    if where == "read":
        origin = MemoryOrigin(content=MEDIUM, refusals=[Bug()])
        with pytest.raises(OriginUnreachable):
            await place.fetches.join(Digest.of(MEDIUM), origin)
    else:
        origin = MemoryOrigin(content=MEDIUM, cuts=[len(MEDIUM) // 2])
        transfer = await place.fetches.join(Digest.of(MEDIUM), origin)
        origin.refusals = [Bug()]
        with pytest.raises(OriginBroken):
            await Reader(transfer).to_end()
    await until(lambda: bool(told))


def _written(place: Place, content: bytes) -> int:
    path = place.state_dir / "partial" / Digest.of(content).encoded
    return path.stat().st_size if path.exists() else -1


class Elsewhere:
    """An election that another process wins, but for one digest."""

    def __init__(self, won: Digest) -> None:
        self.won = won
        self.held: list[Digest] = []

    def stand(self, digest: Digest) -> bool:
        if digest != self.won:
            return False
        self.held.append(digest)
        return True

    def step_down(self, digest: Digest) -> None:
        self.held.remove(digest)


async def test_who_is_not_elected_serves_without_storing(tmp_path: Path) -> None:
    """C11: between processes one fetches a blob; the readers of the others are served all the same."""
    place = Place(tmp_path)
    election = Elsewhere(won=Digest.of(MEDIUM))
    fetches = Fetches(place.store, election=election)
    theirs = await fetches.join(Digest.of(BIG), MemoryOrigin(content=BIG))
    ours = await fetches.join(Digest.of(MEDIUM), MemoryOrigin(content=MEDIUM))

    assert await Reader(theirs).to_end() == BIG
    assert await Reader(ours).to_end() == MEDIUM
    await until(lambda: fetches.running() == 0)
    assert not place.has(Digest.of(BIG))
    assert place.has(Digest.of(MEDIUM))
    assert election.held == []
    await fetches.close()
    await place.close()
