"""The first request of a fetch: what its first reader wants, or what is missing of what an earlier one left.

A range is asked for as a range, so that a footer costs a footer and tells the blob's size; an origin that
knows no ranges answers with the whole, which is taken as that. Errors are the reader's to see: nothing is
asked twice here, but for what a range or a leftover made go wrong.
"""

import asyncio
from contextlib import suppress

from tidegate_proxy.fetching.healing import HealedBody, Patience
from tidegate_proxy.fetching.origin import Origin, OriginRefused
from tidegate_proxy.fetching.taking_up import Leftover
from tidegate_proxy.oci.byte_range import Closed, Extent, From, RangeRequest
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.extents import Span
from tidegate_proxy.storage.partial import PartialBlob
from tidegate_proxy.storage.store import Store

_RANGE_NOT_SATISFIABLE = 416


class Opening:
    """What is known once the origin has answered."""

    def __init__(self, digest: Digest, origin: Origin, patience: Patience, wanted: RangeRequest) -> None:
        self.body: HealedBody | None = None
        """Open, or None when nothing is missing; whoever takes it sets None and closes it."""
        self.leftover: Leftover | None = None
        self.file: asyncio.Future[PartialBlob] | None = None
        """What is to hold the bytes: made meanwhile, so that nobody waits for it."""
        self.size_bytes: int | None = None
        self.media_type: str | None = None
        self.in_order = False
        """Whether the body begins where the front ends and goes on to the end of the gap."""
        self.ranged = True
        """Whether the origin may be asked for ranges."""
        self._digest = digest
        self._origin = origin
        self._patience = patience
        self._wanted = wanted
        self._store: Store | None = None

    async def run(self, store: Store | None) -> None:
        """Ask; raises OriginRefused, OriginUnreachable. Without a store nothing is left, and no file made."""
        self._store = store
        if store is not None and store.may_have_left(self._digest):
            found = await store.run(store.leftover, self._digest)
            if found is not None:
                self.leftover = Leftover(self._digest, *found)
                if await self._go_on(self.leftover):
                    return
                self.leftover = None
        if store is not None:
            self.file = asyncio.ensure_future(store.run(store.partial, self._digest))
        await self._begin()

    async def close(self) -> None:
        """Close what nobody took."""
        if self.body is not None:
            await self.body.close()
        if self.file is not None and self._store is not None:
            with suppress(OSError):
                await self._store.run((await self.file).discard)

    async def _go_on(self, leftover: Leftover) -> bool:
        """Ask for the first bytes that are wanted and missing; False when the leftover is of another blob."""
        self.size_bytes = leftover.record.size_bytes
        gap = _first_gap(leftover, self._wanted)
        if gap is None:
            return True
        at_end = gap.end == self.size_bytes and isinstance(self._wanted, From)
        wanted: RangeRequest = From(gap.first) if at_end else Closed(gap.first, gap.end - 1)
        self.in_order = isinstance(self._wanted, From) and gap.first == leftover.claimed.run_end(0)
        try:
            body = await self._ask(wanted)
        except OriginRefused as refusal:
            if refusal.status != _RANGE_NOT_SATISFIABLE:
                raise
            return False
        if body.size_bytes != self.size_bytes:
            await body.close()
            self.body = None
            return False
        if body.ignored_range:
            self._take_whole(body)
        return True

    async def _begin(self) -> None:
        try:
            body = await self._ask(self._wanted)
            if body.size_bytes is None and self._wanted != From(0):
                await body.close()  # a range of a blob of unknown size cannot be answered: the whole can
                body = await self._ask(From(0))
        except OriginRefused as refusal:
            if refusal.status != _RANGE_NOT_SATISFIABLE or self._wanted == From(0):
                raise
            body = await self._ask(From(0))  # its size tells how the range is to be refused
        if body.ignored_range:
            self._take_whole(body)
        else:
            self.in_order = body.position == 0 and body.end == body.size_bytes
        self.size_bytes = body.size_bytes
        self.ranged = self.ranged and body.size_bytes is not None

    async def _ask(self, wanted: RangeRequest) -> HealedBody:
        self.body = body = HealedBody(self._origin, wanted, self._patience)
        await body.open()
        self.media_type = body.media_type
        return body

    def _take_whole(self, body: HealedBody) -> None:
        body.widen()
        self.in_order, self.ranged = True, False


def _first_gap(leftover: Leftover, wanted: RangeRequest) -> Span | None:
    size_bytes = leftover.record.size_bytes
    extent = wanted.resolve(size_bytes)
    if isinstance(extent, Extent):
        for gap in leftover.claimed.missing(extent.first, extent.last + 1):
            return gap
    return next(leftover.claimed.missing(0, size_bytes), None)
