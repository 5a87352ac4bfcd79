"""A blob's origin in memory: a small working one that can be told to misbehave as real ones do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tidegate_proxy.fetching.origin import OriginBroken, OriginRefused
from tidegate_proxy.oci.byte_range import Extent, From, RangeRequest

TRUTH = -1  # the size told is the size there is


@dataclass(kw_only=True, eq=False)
class MemoryOrigin:
    """Serves `content`; everything else is what goes wrong, and what is remembered of it."""

    content: bytes
    size_told: int | None = TRUTH
    sizes_told: list[int] = field(default_factory=list)  # by the first answers, in this order
    ignores_range: bool = False
    longest_range_bytes: int | None = None
    cuts: list[int] = field(default_factory=list)  # positions where the body breaks, each once
    always_cut_at: int | None = None
    refusals: list[Exception] = field(default_factory=list)  # raised by the first reads, in this order
    chunk_bytes: int = 16 * 1024
    pause_at: int | None = None  # no byte from this position on leaves before `resume` is set
    pauses_once: bool = False
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event | None = None  # no answer is given before it is set
    reads: list[int | str] = field(default_factory=list)  # the first byte of a read to the end, or its range
    sent_bytes: int = 0
    open_bodies: int = 0

    async def read(self, wanted: RangeRequest) -> "MemoryBody":
        self.reads.append(wanted.first if isinstance(wanted, From) else str(wanted))
        await asyncio.sleep(0)
        if self.answer is not None:
            await self.answer.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        ranged = wanted != From(0) and not self.ignores_range
        extent = wanted.resolve(len(self.content)) if ranged else Extent(0, len(self.content) - 1)
        if not isinstance(extent, Extent):
            raise OriginRefused(416)
        if ranged and self.longest_range_bytes is not None:
            extent = Extent(extent.first, min(extent.last, extent.first + self.longest_range_bytes - 1))
        size = len(self.content) if self.size_told == TRUTH else self.size_told
        if self.sizes_told:
            size = self.sizes_told.pop(0)
        self.open_bodies += 1
        return MemoryBody(
            origin=self, first=extent.first, end=extent.last + 1, size_bytes=size, ranged=ranged
        )


@dataclass(kw_only=True, eq=False)
class MemoryBody:
    """One answer of a MemoryOrigin."""

    origin: MemoryOrigin
    first: int
    end: int
    size_bytes: int | None
    ranged: bool
    media_type: str | None = "application/octet-stream"

    async def chunks(self) -> AsyncIterator[bytes]:
        origin, position = self.origin, self.first
        while position < self.end:
            end = min(position + origin.chunk_bytes, self.end)
            cut = next((each for each in origin.cuts if position <= each < end), origin.always_cut_at)
            if cut is not None and position <= cut < end:
                end = cut
            if origin.pause_at is not None and position <= origin.pause_at < end:
                end = origin.pause_at
                if end == position:
                    if origin.pauses_once:
                        origin.pause_at = None
                    await origin.resume.wait()
                    origin.pause_at = None
                    continue
            if end > position:
                origin.sent_bytes += end - position
                yield origin.content[position:end]
                position = end
            if cut is not None and position == cut:
                if cut in origin.cuts:
                    origin.cuts.remove(cut)
                raise OriginBroken(f"cut at {cut}")
        if position in origin.cuts:
            origin.cuts.remove(position)
            raise OriginBroken("cut after the last byte")

    async def close(self) -> None:
        self.origin.open_bodies -= 1
