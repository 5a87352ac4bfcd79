"""A blob's bytes, or a range of them, as one stream, however often its origin cuts, stalls or starts over.

After a cut the origin is asked for the next missing byte (RFC 9110 14.2); If-Range is not sent, for
a digest is verified at the end and needs no validator. An origin that ignores Range is read from its
start and skipped. Attempts in a row are bounded and their pauses grow; progress forgives them. This
module does not choose between upstreams and does not hash.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import assert_never

from tidegate_proxy.fetching.origin import (
    Origin,
    OriginBody,
    OriginBroken,
    OriginRefused,
    OriginUnreachable,
    Trouble,
)
from tidegate_proxy.oci.byte_range import Closed, From, RangeRequest, Suffix

_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an origin is believed in. The first attempt after a cut is made at once."""

    attempts: int = 6
    forgiven_after_bytes: int = 1 << 20
    first_pause_s: float = 0.25
    longest_pause_s: float = 5.0
    answer_s: float = 60.0
    silence_s: float = 15.0

    def pause_s(self, attempt: int) -> float:
        """How long to wait before the attempt of that number, counted from 1."""
        if attempt <= 1:
            return 0.0
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt - 2, 16))


class SizeChanged(OriginUnreachable):
    """The origin tells another size than before: what it has there now is another blob, or a part of it."""


class HealedBody:
    """An origin's bytes in the range that is wanted; close it in any case.

    `position` is where its next byte belongs. Until the origin has answered, a suffix has none.
    """

    def __init__(
        self, origin: Origin, wanted: RangeRequest, patience: Patience, *, size_bytes: int | None = None
    ) -> None:
        self.size_bytes = size_bytes
        self.media_type: str | None = None
        self.position = 0
        self.received_bytes = 0
        """All that came, also what was skipped."""
        self.ignored_range = False
        """Whether the origin answered a range with the whole."""
        self.healed: Counter[str] = Counter()
        self._limit: int | None = None
        self._suffix: Suffix | None = None
        match wanted:
            case From(first):
                self.position = first
            case Closed(first, last):
                self.position, self._limit = first, last + 1
            case Suffix():
                self._suffix = wanted
            case _:
                assert_never(wanted)
        self._origin = origin
        self._patience = patience
        self._attempts = 0
        self._healed_at = self.position
        self._body: OriginBody | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._skip = 0

    async def open(self) -> None:
        """The first request, not repeated; raises OriginRefused, OriginUnreachable."""
        body = await self._ask()
        self.media_type = body.media_type

    async def open_patiently(self) -> None:
        """The first request of somebody who was already promised bytes; raises OriginBroken."""
        try:
            await self.open()
        except (OriginRefused, OriginUnreachable) as cut:
            await self._heal(cut)

    async def read(self) -> bytes | memoryview:
        """The next bytes, or none at the end of the range; raises OriginBroken when patience has run out."""
        while (end := self.end) is None or self.position < end:
            try:
                chunk = await self._next_chunk()
            except OriginBroken as cut:
                if not await self._heal(cut):
                    break
                continue
            if chunk is None:
                if end is None:
                    break
                early = f"the body ended at byte {self.position} of {end}"
                if not await self._heal(OriginBroken(early)):
                    break
                continue
            self.received_bytes += len(chunk)
            fresh = self._fresh(chunk, end)
            if fresh:
                self.position += len(fresh)
                return fresh
        return b""

    @property
    def is_open(self) -> bool:
        """Whether the origin has answered, and the body is not closed."""
        return self._body is not None

    @property
    def end(self) -> int | None:
        """Where the range ends (excluded); None while that is not known."""
        if self._limit is None or self.size_bytes is None:
            return self.size_bytes if self._limit is None else self._limit
        return min(self._limit, self.size_bytes)

    def shorten(self, end: int) -> None:
        """End at `end`, which is past `position`."""
        self._limit = end

    def widen(self) -> None:
        """Read it all, before the first byte was read: for the body of an origin that ignored the range."""
        self.position, self._limit, self._suffix, self._skip = 0, None, None, 0

    async def close(self) -> None:
        """Let go of the connection."""
        body, self._body, self._chunks = self._body, None, None
        if body is not None:
            await body.close()

    async def _next_chunk(self) -> bytes | None:
        assert self._chunks is not None, "open() comes first"
        try:
            async with asyncio.timeout(self._patience.silence_s):
                return await anext(self._chunks, None)
        except TimeoutError as error:
            raise OriginBroken(
                f"no byte came for {self._patience.silence_s:g} s", trouble="stalled"
            ) from error

    def _fresh(self, chunk: bytes | memoryview, end: int | None) -> bytes | memoryview:
        """The part of the chunk that was not delivered before and lies within the range."""
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = memoryview(chunk)[skipped:]
        return chunk if end is None or self.position + len(chunk) <= end else chunk[: end - self.position]

    async def _heal(self, cut: Exception) -> bool:
        """Go on at the next missing byte; False if there is none. Raises OriginBroken when attempts end."""
        await self.close()
        if self.position - self._healed_at >= self._patience.forgiven_after_bytes:
            self._attempts = 0
        self._healed_at = self.position
        troubles = {_trouble(cut)}
        while self._attempts < self._patience.attempts:
            self._attempts += 1
            await asyncio.sleep(self._patience.pause_s(self._attempts))
            try:
                await self._ask()
            except OriginRefused as refusal:
                if refusal.status == _RANGE_NOT_SATISFIABLE and self.end is None and self.position:
                    return False  # a body without a length was cut exactly at its end: the digest will tell
                cut = refusal
            except OriginUnreachable as error:
                cut = error
            else:
                self.healed.update(troubles)
                return True
            troubles.add(_trouble(cut))
        raise OriginBroken(
            f"the origin failed {self._attempts} times in a row, last: {cut}", trouble=_trouble(cut)
        ) from cut

    async def _ask(self) -> OriginBody:
        wanted = self._wanted()
        try:
            async with asyncio.timeout(self._patience.answer_s):
                body = await self._origin.read(wanted)
        except TimeoutError as error:
            raise OriginUnreachable(f"no answer came for {self._patience.answer_s:g} s") from error
        self._body = body
        try:
            self._accept(body, wanted)
        except OriginUnreachable:
            await self.close()
            raise
        self._chunks = aiter(body.chunks())
        return body

    def _wanted(self) -> RangeRequest:
        if self._suffix is not None:
            return self._suffix
        end = self.end
        return (
            From(self.position) if end is None or end == self.size_bytes else Closed(self.position, end - 1)
        )

    def _accept(self, body: OriginBody, wanted: RangeRequest) -> None:
        """Take over what the answer's head tells; raises OriginUnreachable when it was not asked for."""
        if None not in (self.size_bytes, body.size_bytes) and self.size_bytes != body.size_bytes:
            raise SizeChanged(f"the size was {self.size_bytes}, now it is {body.size_bytes}")
        if self.size_bytes is None:
            self.size_bytes = body.size_bytes
        self.ignored_range = not body.ranged and wanted != From(0)
        if self._suffix is not None and self.size_bytes is not None:
            self.position = max(0, self.size_bytes - self._suffix.length)
            self._limit, self._suffix = self.size_bytes, None
        if body.first > self.position:
            raise OriginUnreachable(f"asked for byte {self.position}, the origin began at {body.first}")
        self._skip = self.position - body.first


def _trouble(error: Exception) -> Trouble:
    match error:
        case OriginBroken():
            return error.trouble
        case OriginRefused():
            return "refused"
        case SizeChanged():
            return "size"
        case _:
            return "unreachable"
