"""A client's side of a transfer: reads until it is told to wait, and keeps what it got."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from tidegate_proxy.fetching.transfer import Transfer
from tidegate_proxy.oci.byte_range import Extent


class Reader:
    """Reads a transfer; `received` is what came, also when it ended badly."""

    def __init__(self, transfer: Transfer, extent: Extent | None = None, *, hold_tail: bool = True) -> None:
        self.received = bytearray()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._transfer = transfer
        self._extent = extent
        self._hold_tail = hold_tail

    async def to_end(self) -> bytes:
        async with aclosing(self._transfer.stream(self._extent, hold_tail=self._hold_tail)) as pieces:
            async for piece in pieces:
                self.received += piece
                await self.go_on.wait()
        return bytes(self.received)


async def until(claim: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Return once the claim holds; fail when it does not within the time."""
    async with asyncio.timeout(within_s):
        while not claim():
            await asyncio.sleep(0.001)
