"""One blob being fetched: from its origin through the spool to a partial file, and what readers may know.

The fetch runs ahead of its readers on disk only: memory holds one spool and one piece being written.
Bytes count as written once they are in the file; readers take them from there, so a slow one slows
nobody. When the digest matches, the readers get their tail first, and the disk is synced after.

Failure policy: trouble with the disk ends the fetch but no reader (each goes on alone, from its own
request, with the hash of what was written so far); trouble with the origin or a wrong digest ends all.
This module does not know who reads.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from tidegate_proxy.fetching.healing import HealedBody, Patience
from tidegate_proxy.fetching.origin import Origin, OriginBroken, OriginRefused, OriginUnreachable
from tidegate_proxy.fetching.spool import Spool
from tidegate_proxy.oci.digest import Digest, Hasher
from tidegate_proxy.storage.partial import PartialBlob, SyncFailed
from tidegate_proxy.storage.reading import OpenFile
from tidegate_proxy.storage.store import Store, StoredBlob

Ending = Literal["stored", "unstored", "mismatch", "broken", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnded:
    """How a fetch ended, for metrics and the log: `received_bytes` came from the origin."""

    digest: Digest
    ending: Ending
    received_bytes: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The hash of a blob's first `position` bytes: where a reader that goes on alone may start."""

    position: int
    hasher: Hasher


@dataclass(frozen=True, slots=True)
class Verified:
    """All bytes are in the file and have the right digest."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Unstored:
    """The disk failed: the file holds good bytes up to the checkpoint, and no more will come."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Mismatched:
    """All bytes came, and their digest is another one."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The origin failed for good, or the fetch was stopped: no reader can be served to the end."""

    cause: str


Outcome = Verified | Unstored | Mismatched | Broken


class Filling:
    """The shared state of one fetch, and the task body that advances it."""

    def __init__(self, digest: Digest, origin: Origin, store: Store, patience: Patience) -> None:
        self.digest = digest
        self.origin = origin
        self.size_bytes: int | None = None
        self.media_type: str | None = None
        self.file: OpenFile | None = None
        self.written = 0
        self.outcome: Outcome | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._store = store
        self._patience = patience
        self._hasher = digest.hasher()
        self._waiting: list[asyncio.Future[None]] = []

    @classmethod
    def of_stored(cls, blob: StoredBlob, origin: Origin, store: Store, patience: Patience) -> Self:
        """A fetch that had ended well by the time somebody asked: nothing is left to run."""
        filling = cls(blob.digest, origin, store, patience)
        filling.size_bytes = filling.written = blob.size_bytes
        filling.file = blob.file
        filling.outcome = Verified(blob.size_bytes)
        filling.started.set_result(None)
        return filling

    async def changed(self) -> None:
        """Wait until `written` or `outcome` changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    async def run(self, *, store: bool, ended: Callable[[FetchEnded], None]) -> None:
        """Fetch to the end, whoever leaves meanwhile; `ended` is called once, when the name is free again.

        With `store` false only the size is found out, and every reader goes on alone.
        """
        body = HealedBody(self.origin, 0, self._patience)
        ending: Ending = "broken"
        cause = "the fetch was stopped"
        try:
            try:
                await body.open()
            except (OriginRefused, OriginUnreachable) as error:
                ending, cause = "refused", error.cause
                self.started.set_exception(error)
                return
            self.size_bytes, self.media_type = body.size_bytes, body.media_type
            self.started.set_result(None)
            ending, cause = await self._fill(body, store=store)
        finally:
            # However this ends, a bug or a cancellation included, no reader may be left waiting.
            self.stop(cause)
            ended(FetchEnded(digest=self.digest, ending=ending, received_bytes=body.position, cause=cause))
            await body.close()

    def stop(self, cause: str) -> None:
        """Release whoever waits, with an error, unless the outcome is known already."""
        if self.outcome is None:
            self._settle(Broken(cause))
        if not self.started.done():
            self.started.set_exception(OriginUnreachable(cause))
        self.started.exception()  # everybody may have left: the loop need not say that nobody looked

    async def _fill(self, body: HealedBody, *, store: bool) -> tuple[Ending, str]:
        """Receive and write all there is, then verify and publish; the outcome is settled on return."""
        if not store:
            self._settle(Unstored(Checkpoint(0, self._hasher)))
            return "unstored", "too many fetches at once"
        try:
            partial = await self._store.run(self._store.partial, self.digest)
        except OSError as error:
            self._settle(Unstored(Checkpoint(0, self._hasher)))
            return "unstored", str(error)
        self.file = partial.file
        spool = Spool()
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(_receive(body, spool))
            disk_error = await self._write(spool, partial)
            if disk_error is not None:
                receiving.cancel()
        if disk_error is not None:
            await self._store.run(partial.discard)
            self._settle(Unstored(Checkpoint(self.written, self._hasher)))
            return "unstored", str(disk_error)
        if (cut := receiving.result()) is not None:
            await self._store.run(partial.discard)
            self._settle(Broken(cut.cause))
            return "broken", cut.cause
        return await self._verify(partial)

    async def _write(self, spool: Spool, partial: PartialBlob) -> OSError | None:
        """Move the spool into the file and the hash until it ends; return what the disk objected."""
        while chunks := await spool.take():
            try:
                size = await self._store.run(self._write_piece, partial, chunks)
            except OSError as error:
                return error
            self.written += size
            self._wake()
        return None

    def _write_piece(self, partial: PartialBlob, chunks: list[bytes | memoryview]) -> int:
        # One large write and one large hash: each lets the loop have the interpreter lock meanwhile.
        piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        partial.write(self.written, piece)
        # Only now: after a failed write the hash still is that of the bytes that count as written.
        self._hasher.update(piece)
        return len(piece)

    async def _verify(self, partial: PartialBlob) -> tuple[Ending, str]:
        if self._hasher.hexdigest() != self.digest.encoded:
            await self._store.run(partial.discard)
            self._settle(Mismatched())
            return "mismatch", "the bytes have another digest"
        self._settle(Verified(self.written))
        try:
            await self._store.run(self._store.publish, partial)
        except SyncFailed as error:
            # What the file shows may be lost: who has not read all of it starts over from an origin, unseen.
            self._settle(Unstored(Checkpoint(0, self.digest.hasher())))
            cause = str(error)
        except OSError as error:
            cause = str(error)  # only the name is missing: readers go on from the open file
        else:
            return "stored", ""
        await self._store.run(partial.discard)
        return "unstored", cause

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
