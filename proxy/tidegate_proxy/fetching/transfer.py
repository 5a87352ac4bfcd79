"""A reader's side of a blob that is being fetched, or was when the reader asked.

A reader follows the growing file, not the fetch: it takes what is written, waits for more, and learns
the outcome. It holds the file as long as it lives, so its bytes stay readable whatever becomes of the
store. This module does not write and does not know HTTP.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import assert_never

from tidegate_proxy.fetching.filling import Filling
from tidegate_proxy.fetching.healing import Patience
from tidegate_proxy.fetching.origin import Origin, OriginBroken
from tidegate_proxy.fetching.outcome import Broken, Checkpoint, Mismatched, Unstored, Verified
from tidegate_proxy.fetching.solo import extent_alone, verified_alone
from tidegate_proxy.fetching.tail import TAIL_BYTES, releasable
from tidegate_proxy.oci.byte_range import Extent
from tidegate_proxy.storage.reading import Buffers, OpenFile
from tidegate_proxy.storage.store import DigestMismatch, Store


class Transfer:
    """One blob for one reader; `size_bytes` is None when the origin does not tell."""

    def __init__(self, filling: Filling, origin: Origin, store: Store, patience: Patience) -> None:
        self.digest = filling.digest
        self.size_bytes = filling.size_bytes
        self.media_type = filling.media_type
        self._filling = filling
        self._origin = origin
        self._store = store
        self._patience = patience

    async def stream(
        self, extent: Extent | None = None, *, hold_tail: bool = True
    ) -> AsyncGenerator[memoryview, None]:
        """The whole body, or an extent of it, as the bytes arrive; use `aclosing` to leave early.

        With `hold_tail` the last 32 KiB leave only after the digest has matched; say so for whole bodies
        and for `bytes=N-`. An extent that is the whole is held in any case. One that reaches past the
        end stops there. Raises DigestMismatch, OriginBroken: cut the connection.
        """
        position = extent.first if extent else 0
        end = self._end(extent)
        hold = hold_tail or extent is None or (position == 0 and end == self.size_bytes)
        with self._filling.reading(whole=hold):
            async for piece in self._from_file(position, end, hold=hold):
                position += len(piece)
                yield piece
                del piece  # see `_from_file`
        if self._complete(position, end):
            return
        async with aclosing(await self._alone(position, end, hold=hold)) as alone:
            async for piece in alone:
                part = piece if end is None else piece[: end - position]
                position += len(part)
                yield part
                if position == end:
                    return

    async def _from_file(self, position: int, end: int | None, *, hold: bool) -> AsyncIterator[memoryview]:
        """What the shared file has; ends early where the reader has to go on alone."""
        filling = self._filling
        buffers = Buffers()
        while not self._complete(position, end):
            outcome = filling.outcome
            ready = filling.present.run_end(position)
            match outcome:
                case Mismatched():
                    raise DigestMismatch(self.digest)
                case Verified():
                    stop = ready
                case Unstored(checkpoint) if hold:
                    stop = min(ready, releasable(checkpoint.position, self.size_bytes))
                case Unstored() | Broken() | None:
                    stop = releasable(ready, self.size_bytes) if hold else ready
                case _:
                    assert_never(outcome)
            if end is not None:
                stop = min(stop, end)
            if position < stop and filling.file is not None:
                try:
                    piece = await self._store.read(filling.file, position, stop, buffers.take())
                except OSError:
                    return
                position += len(piece)
                yield piece
                del piece  # or its buffer would look as if the transport still had it
            elif isinstance(outcome, Broken):
                raise OriginBroken(outcome.cause)
            elif outcome is not None or not (filling.want(position, end) or hold):
                return
            else:
                await filling.changed()

    async def _alone(self, position: int, end: int | None, *, hold: bool) -> AsyncGenerator[memoryview, None]:
        """The rest, from `position`, by a request of this reader's own."""
        if not hold and end is not None:
            return extent_alone(
                self._origin, self._patience, first=position, end=end, size_bytes=self.size_bytes
            )
        known, held = await self._known(position)
        return verified_alone(
            self.digest,
            self._origin,
            self._patience,
            first=position,
            size_bytes=self.size_bytes,
            known=known,
            held=held,
        )

    async def _known(self, position: int) -> tuple[Checkpoint, bytes]:
        """Where to start, and the bytes before it that are still to be sent: none, or at most a tail."""
        filling = self._filling
        if isinstance(filling.outcome, Unstored):
            known = filling.outcome.checkpoint
            if filling.file is not None and known.position - position <= TAIL_BYTES:
                with suppress(OSError):
                    return known, await self._read_exactly(filling.file, position, known.position)
        # The file cannot be trusted or read: hash the blob anew, and send only what was not sent.
        return Checkpoint(0, self.digest.hasher()), b""

    async def _read_exactly(self, file: OpenFile, position: int, end: int) -> bytes:
        pieces = []
        while position < end:
            pieces.append(await self._store.read(file, position, end))
            position += len(pieces[-1])
        return b"".join(pieces)

    def _end(self, extent: Extent | None) -> int | None:
        if extent is None:
            return self.size_bytes
        return extent.last + 1 if self.size_bytes is None else min(extent.last + 1, self.size_bytes)

    def _complete(self, position: int, end: int | None) -> bool:
        match self._filling.outcome:
            case Verified(size_bytes) if position >= size_bytes:
                return True
            case _:
                return end is not None and position >= end
