"""One blob being fetched: from its origin through spools to a partial file, and what readers may know.

The fetch runs ahead of its readers on disk only: memory holds a spool and one piece being written for each
request under way. Bytes count as present once they are in the file; readers take them from there, so a slow
one slows nobody. A blob that somebody wants whole comes from front to back in one request, and is hashed as
it comes. One that is only read in ranges gets these first, each in a request of its own, and the rest when
nobody has asked for a while (FEATURES C10); what came out of order is hashed from the file. When the digest
matches, the readers get their tail first, and the disk is synced after.

Failure policy: trouble with the disk ends the fetch but no reader (each goes on alone, from its own
request, with the hash of what was written so far); trouble with the origin or a wrong digest ends all, and
only a wrong digest throws away what is on the disk. This module does not know who reads.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Self

from tidegate_proxy.fetching.healing import HealedBody, Patience
from tidegate_proxy.fetching.landing import Chunks, Landing
from tidegate_proxy.fetching.lanes import Lane, Lanes
from tidegate_proxy.fetching.opening import Opening
from tidegate_proxy.fetching.origin import Origin, OriginBroken, OriginRefused, OriginUnreachable
from tidegate_proxy.fetching.outcome import (
    Broken,
    Checkpoint,
    Ending,
    FetchEnded,
    Mismatched,
    Outcome,
    Unstored,
    Verified,
)
from tidegate_proxy.fetching.spool import Spool
from tidegate_proxy.fetching.taking_up import Leftover
from tidegate_proxy.fetching.turns import Pace, Turns
from tidegate_proxy.oci.byte_range import Closed, From, RangeRequest
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.extents import Extents
from tidegate_proxy.storage.partial import PartialBlob, SyncFailed
from tidegate_proxy.storage.reading import OpenFile
from tidegate_proxy.storage.store import Store, StoredBlob


class Filling:
    """The shared state of one fetch, and the task body that advances it."""

    def __init__(
        self,
        digest: Digest,
        origin: Origin,
        store: Store,
        patience: Patience,
        *,
        wanted: RangeRequest | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`wanted` is what its first reader asked for; None is the whole."""
        self.digest = digest
        self.origin = origin
        self.size_bytes: int | None = None
        self.media_type: str | None = None
        self.file: OpenFile | None = None
        self.present = Extents()
        self.outcome: Outcome | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted: RangeRequest = wanted or From(0)
        self._store = store
        self._patience = patience
        self._pace = pace or Pace()
        self._lanes = Lanes(self.present)
        self._landing: Landing | None = None
        self._turns = Turns(self._pace)
        self._ranged = True
        self._ranges_fail = False
        self._group: asyncio.TaskGroup | None = None
        self._ranges: set[asyncio.Task[None]] = set()
        self._received_bytes = 0
        self._healed: Counter[str] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    @classmethod
    def of_stored(cls, blob: StoredBlob, origin: Origin, store: Store, patience: Patience) -> Self:
        """A fetch that had ended well by the time somebody asked: nothing is left to run."""
        filling = cls(blob.digest, origin, store, patience)
        filling.size_bytes = blob.size_bytes
        filling.present.add(0, blob.size_bytes)
        filling.file = blob.file
        filling.outcome = Verified(blob.size_bytes)
        filling.started.set_result(None)
        return filling

    # What readers do

    async def changed(self) -> None:
        """Wait until `present` or `outcome` changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def reading(self, *, whole: bool) -> AbstractContextManager[None]:
        """For as long as somebody reads: the whole or its rest, or a range."""
        return self._turns.reading(whole=whole)

    def want(self, first: int, end: int | None) -> bool:
        """Have the byte at `first` and those behind it brought; False when it will come in order at best."""
        if not self._ranged or end is None or self._group is None:
            return True  # they come from front to back
        if self._turns.whole and first == self.present.run_end(0):
            return True  # the front, which comes next in any case
        needed = self._lanes.needed(first, end)
        if needed is None:
            return True
        if self._ranges_fail:
            return False
        self._fetch_range(self._body(*needed), self._group)
        return True

    # The fetch

    async def run(self, *, store: bool, ended: Callable[[FetchEnded], None]) -> None:
        """Fetch to the end, whoever leaves meanwhile; `ended` is called once, when the name is free again.

        With `store` false only the size is found out, and every reader goes on alone.
        """
        ending: Ending = "broken"
        cause = "the fetch was stopped"
        opening = Opening(self.digest, self.origin, self._patience, self._wanted)
        try:
            try:
                await opening.run(self._store if store else None)
            except (OriginRefused, OriginUnreachable) as error:
                ending, cause = "refused", error.cause
                self.started.set_exception(error)
                return
            self.size_bytes, self.media_type = opening.size_bytes, opening.media_type
            self._ranged = opening.ranged
            self.started.set_result(None)
            ending, cause = await self._fill(opening, store=store)
        finally:
            # However this ends, a bug or a cancellation included, no reader may be left waiting.
            self.stop(cause)
            if self._landing is not None:
                self._landing.partial.let_go()
            ended(
                FetchEnded(
                    digest=self.digest,
                    ending=ending,
                    received_bytes=self._received_bytes,
                    cause=cause,
                    healed=self._healed,
                )
            )
            await opening.close()

    def stop(self, cause: str) -> None:
        """Release whoever waits, with an error, unless the outcome is known already."""
        if self.outcome is None:
            self._settle(Broken(cause))
        if not self.started.done():
            self.started.set_exception(OriginUnreachable(cause))
        self.started.exception()  # everybody may have left: the loop need not say that nobody looked

    async def _fill(self, opening: Opening, *, store: bool) -> tuple[Ending, str]:
        """Receive and write all there is, then verify and publish; the outcome is settled on return."""
        if not store:
            self._settle(Unstored(Checkpoint(0, self.digest.hasher())))
            return "unstored", "too many fetches at once"
        if self.size_bytes is not None and not self._store.has_room_for(self.size_bytes):
            self._settle(Unstored(Checkpoint(0, self.digest.hasher())))
            return "unstored", "larger than the cache, and no space to spare"
        try:
            unfinished = await self._file(opening)
        except OSError as error:
            self._settle(Unstored(Checkpoint(0, self.digest.hasher())))
            return "unstored", str(error)
        self.file = unfinished.file
        unrecorded = self.size_bytes if opening.leftover is None else None
        self._landing = Landing(self.digest, unfinished, size_bytes=unrecorded)
        if opening.leftover is not None:
            await self._take_up(self._landing, opening.leftover)
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                trouble = await self._fetch(opening, self._landing, group)
            finally:
                self._group = None
                for task in self._ranges:
                    task.cancel()
        match trouble:
            case OSError():
                return await self._fail_on_disk(self._landing, trouble)
            case OriginBroken():
                await self._store.run(self._leave, self._landing)
                self._settle(Broken(trouble.cause))
                return "broken", trouble.cause
            case None:
                return await self._verify(self._landing)

    async def _file(self, opening: Opening) -> PartialBlob:
        if opening.leftover is not None:
            return opening.leftover.partial
        file, opening.file = opening.file, None
        assert file is not None  # made since it was clear that the bytes are to be stored
        return await file

    async def _take_up(self, landing: Landing, leftover: Leftover) -> None:
        """Hash what is on the disk; readers get it as it proves right."""
        while (spans := await self._store.run(leftover.step)) is not None:
            for span in spans:
                self.present.add(*span)
            self._wake()
        await self._store.run(leftover.settle)
        landing.take_up(leftover.hashed, leftover.hasher)
        if self.present.size_bytes:
            self._healed["restart"] += 1

    async def _fetch(
        self, opening: Opening, landing: Landing, group: asyncio.TaskGroup
    ) -> OSError | OriginBroken | None:
        """Bring all that is missing; returns what made that impossible."""
        self._wake()  # who read meanwhile may say now what they want
        body, opening.body = opening.body, None
        if isinstance(self._wanted, From) or not self._ranged:
            self._turns.hurry()
        if body is not None and not opening.in_order:
            self._fetch_range(body, group)
        elif body is not None and (trouble := await self._bring_in_order(landing, body)):
            return trouble
        while (size_bytes := self.size_bytes) is not None and self.present.run_end(0) < size_bytes:
            async with self._turns.turn() as in_background:
                gap = self._lanes.next_gap(size_bytes, read_through=not in_background)
                if gap is None:  # the rest is on its way
                    await self.changed()
                    continue
                end = min(gap.end, gap.first + self._pace.window_bytes) if in_background else gap.end
                if trouble := await self._bring_in_order(landing, self._body(gap.first, end)):
                    return trouble
        return None

    def _body(self, first: int, end: int) -> HealedBody:
        wanted = From(first) if end == self.size_bytes else Closed(first, end - 1)
        return HealedBody(self.origin, wanted, self._patience, size_bytes=self.size_bytes)

    async def _bring_in_order(self, landing: Landing, body: HealedBody) -> OSError | OriginBroken | None:
        lane = Lane(body=body, written=body.position)
        self._lanes.open(lane)
        try:
            return await self._bring(landing, lane, in_order=True)
        finally:
            await self._retire(lane)

    def _fetch_range(self, body: HealedBody, group: asyncio.TaskGroup) -> None:
        assert self._landing is not None  # nobody is here before there is a file
        lane = Lane(body=body, written=body.position)
        self._lanes.open(lane)
        task = group.create_task(self._range(self._landing, lane), name=f"range of {self.digest}")
        self._ranges.add(task)
        task.add_done_callback(self._ranges.discard)

    async def _range(self, landing: Landing, lane: Lane) -> None:
        """Bring one range that readers wait for; if that fails they go on alone, and the fetch goes on."""
        try:
            async with self._pace.ranges:
                trouble = await self._bring(landing, lane, in_order=False)
        finally:
            await self._retire(lane)
        if lane.body.ignored_range:
            self._ranged = False
            self._turns.hurry()
        self._ranges_fail = self._ranges_fail or trouble is not None
        self._wake()

    async def _bring(self, landing: Landing, lane: Lane, *, in_order: bool) -> OSError | OriginBroken | None:
        """Move a request's bytes through a spool into the file; returns what went wrong."""
        try:
            if not lane.body.is_open:
                await lane.body.open_patiently()
            if lane.body.ignored_range and not in_order:
                return None  # all of it comes in order
            first = await lane.body.read()
        except OriginBroken as error:
            return error
        # It goes to the file and its reader before more is received: decrypting that would hold them up.
        if first and (disk_error := await self._write(landing, lane, [first], in_order=in_order)):
            return disk_error
        spool = Spool()
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(_receive(lane.body, spool))
            disk_error = await self._write_all(landing, lane, spool, in_order=in_order)
            if disk_error is not None:
                receiving.cancel()
        return disk_error or receiving.result()

    async def _write_all(
        self, landing: Landing, lane: Lane, spool: Spool, *, in_order: bool
    ) -> OSError | None:
        """Move the spool into the file until it ends; return what the disk objected."""
        while chunks := await spool.take():
            if disk_error := await self._write(landing, lane, chunks, in_order=in_order):
                return disk_error
        return None

    async def _write(self, landing: Landing, lane: Lane, chunks: Chunks, *, in_order: bool) -> OSError | None:
        """Move the chunks into the file and tell readers; return what the disk objected."""
        first = lane.written
        end = first + sum(map(len, chunks))
        shares = self._lanes.share(lane, first, end)
        try:
            await self._undisturbed(partial(landing.write, first, chunks, shares, in_order=in_order))
            for share in shares:
                self.present.add(*share)
            lane.written = end
            self._wake()
            if in_order and (ready := self.present.run_end(landing.hashed)) > landing.hashed:
                await self._undisturbed(partial(landing.hash_on, ready))
        except OSError as error:
            return error
        return None

    async def _undisturbed(self, function: Callable[[], None]) -> None:
        """Call it in a thread, and when cancelled wait for its end: no write may come after its lane's."""
        call = self._store.begin(function)
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait((call,))
            raise

    async def _retire(self, lane: Lane) -> None:
        body = lane.body
        self._lanes.close(lane)
        self._received_bytes += body.received_bytes
        self._healed.update(body.healed)
        self._wake()
        await body.close()

    async def _verify(self, landing: Landing) -> tuple[Ending, str]:
        size_bytes = self.present.run_end(0)
        try:
            while landing.hashed < size_bytes:
                await self._store.run(landing.hash_on, size_bytes)
        except OSError as error:
            return await self._fail_on_disk(landing, error)
        unfinished = landing.partial
        if landing.hasher.hexdigest() != self.digest.encoded:
            await self._store.run(unfinished.discard)
            self._settle(Mismatched())
            return "mismatch", "the bytes have another digest"
        self._settle(Verified(size_bytes))
        try:
            await self._store.run(self._store.publish, unfinished)
        except SyncFailed as error:
            # What the file shows may be lost: who has not read all of it starts over from an origin, unseen.
            self._settle(Unstored(Checkpoint(0, self.digest.hasher())))
            cause = str(error)
        except OSError as error:
            cause = str(error)  # only the name is missing: readers go on from the open file
        else:
            return "stored", ""
        await self._store.run(unfinished.discard)
        return "unstored", cause

    async def _fail_on_disk(self, landing: Landing, error: OSError) -> tuple[Ending, str]:
        await self._store.run(landing.partial.discard)
        self._settle(Unstored(Checkpoint(landing.hashed, landing.hasher)))
        return "unstored", str(error)

    def _leave(self, landing: Landing) -> None:
        """Leave what came to the next who asks, within what leftovers may take."""
        if self.size_bytes is None or not self.present.size_bytes:
            landing.partial.discard()
            return
        landing.note_front()
        self._store.left(self.digest)
        self._store.trim_leftovers()

    def _settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


async def _receive(body: HealedBody, spool: Spool) -> OriginBroken | None:
    """Move the origin's bytes into the spool; return why the origin could not be read to its end."""
    try:
        while chunk := await body.read():
            await spool.put(chunk)
    except OriginBroken as error:
        return error
    finally:
        spool.end()
    return None
