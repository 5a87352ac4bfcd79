"""One blob's bytes as one stream, however often its origin cuts, stalls or starts over.

After a cut the origin is asked for the next missing byte (RFC 9110 14.2); If-Range is not sent, for
a digest is verified at the end and needs no validator. An origin that ignores Range is read from its
start and skipped. Attempts in a row are bounded and their pauses grow; progress forgives them. This
module does not choose between upstreams and does not hash.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tidegate_proxy.fetching.origin import Origin, OriginBody, OriginBroken, OriginRefused, OriginUnreachable

_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an origin is believed in. The first attempt after a cut is made at once."""

    attempts: int = 6
    forgiven_after_bytes: int = 1 << 20
    first_pause_s: float = 0.25
    longest_pause_s: float = 5.0
    answer_s: float = 60.0
    silence_s: float = 30.0

    def pause_s(self, attempt: int) -> float:
        """How long to wait before the attempt of that number, counted from 1."""
        if attempt <= 1:
            return 0.0
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt - 2, 16))


class HealedBody:
    """An origin's bytes from `first` to the end of the blob; close it in any case."""

    def __init__(
        self, origin: Origin, first: int, patience: Patience, *, size_bytes: int | None = None
    ) -> None:
        self.size_bytes = size_bytes
        self.media_type: str | None = None
        self.position = first
        self._origin = origin
        self._patience = patience
        self._attempts = 0
        self._healed_at = first
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
        """The next bytes, or none at the end of the blob; raises OriginBroken when patience has run out."""
        while self.size_bytes is None or self.position < self.size_bytes:
            try:
                chunk = await self._next_chunk()
            except OriginBroken as cut:
                if not await self._heal(cut):
                    break
                continue
            if chunk is None:
                if self.size_bytes is None:
                    break
                if not await self._heal(
                    OriginBroken(f"the body ended at byte {self.position} of {self.size_bytes}")
                ):
                    break
                continue
            fresh = self._fresh(chunk)
            if fresh:
                self.position += len(fresh)
                return fresh
        return b""

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
            raise OriginBroken(f"no byte came for {self._patience.silence_s:g} s") from error

    def _fresh(self, chunk: bytes) -> bytes | memoryview:
        """The part of the chunk that was not delivered before and lies within the promised size."""
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            return self._within(memoryview(chunk)[skipped:])
        return self._within(chunk)

    def _within(self, chunk: bytes | memoryview) -> bytes | memoryview:
        if self.size_bytes is None or self.position + len(chunk) <= self.size_bytes:
            return chunk
        return chunk[: self.size_bytes - self.position]

    async def _heal(self, cut: Exception) -> bool:
        """Go on at the next missing byte; False if there is none. Raises OriginBroken when attempts end."""
        await self.close()
        if self.position - self._healed_at >= self._patience.forgiven_after_bytes:
            self._attempts = 0
        self._healed_at = self.position
        while self._attempts < self._patience.attempts:
            self._attempts += 1
            await asyncio.sleep(self._patience.pause_s(self._attempts))
            try:
                await self._ask()
            except OriginRefused as refusal:
                if refusal.status == _RANGE_NOT_SATISFIABLE and self.size_bytes is None and self.position:
                    return False  # a body without a length was cut exactly at its end: the digest will tell
                cut = refusal
            except OriginUnreachable as error:
                cut = error
            else:
                return True
        raise OriginBroken(f"the origin failed {self._attempts} times in a row, last: {cut}") from cut

    async def _ask(self) -> OriginBody:
        try:
            async with asyncio.timeout(self._patience.answer_s):
                body = await self._origin.read(self.position)
        except TimeoutError as error:
            raise OriginUnreachable(f"no answer came for {self._patience.answer_s:g} s") from error
        self._body = body
        if body.first > self.position:
            await self.close()
            raise OriginUnreachable(f"asked for byte {self.position}, the origin began at {body.first}")
        if None not in (self.size_bytes, body.size_bytes) and self.size_bytes != body.size_bytes:
            await self.close()
            raise OriginUnreachable(f"the size was {self.size_bytes}, now it is {body.size_bytes}")
        if self.size_bytes is None:
            self.size_bytes = body.size_bytes
        self._skip = self.position - body.first
        self._chunks = aiter(body.chunks())
        return body
