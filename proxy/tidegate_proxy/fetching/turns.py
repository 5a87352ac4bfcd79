"""When the rest of a blob is fetched: at once for who reads to its end, and else when nobody reads of it.

Lazy snapshotters read ranges of many blobs at once. What they do not ask for competes with what they do, so
it waits until a blob has been left alone for a while, and for its turn among all blobs that wait. Somebody
who wants the whole ends the waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pace:
    """What all fetches share: requests for ranges at once, blobs filled in the background at once.

    A background fill begins when nobody has read a range for `quiet_s`; it asks for `window_bytes` at a time.
    """

    ranges: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(32))
    background: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    quiet_s: float = 2.0
    window_bytes: int = 4 << 20


class Turns:
    """One blob's."""

    def __init__(self, pace: Pace) -> None:
        self.whole = False
        """Whether somebody wants, or wanted, all of it."""
        self._pace = pace
        self._deferred: asyncio.Timeout | None = None
        self._readers = 0
        self._nobody_reads = asyncio.Event()
        self._nobody_reads.set()
        self._last_read = asyncio.get_running_loop().time()

    @contextmanager
    def reading(self, *, whole: bool) -> Iterator[None]:
        """Somebody reads: the whole or its rest, which is fetched now, or a range, which defers the rest."""
        if whole:
            self.hurry()
            yield
            return
        self._readers += 1
        self._nobody_reads.clear()
        try:
            yield
        finally:
            self._readers -= 1
            self._last_read = asyncio.get_running_loop().time()
            if not self._readers:
                self._nobody_reads.set()

    def hurry(self) -> None:
        """Fetch all there is, now."""
        if self.whole:
            return
        self.whole = True
        if self._deferred is not None:
            self._deferred.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """When the next bytes in order may be asked for; whether only for the sake of the store."""
        in_background = not self.whole and await self._in_background()
        try:
            yield in_background
        finally:
            if in_background:
                self._pace.background.release()

    async def _in_background(self) -> bool:
        """Wait until no range was read for a while, and for a turn; False when somebody wants the whole."""
        try:
            async with asyncio.timeout(None) as self._deferred:
                await self._quiet()
                await self._pace.background.acquire()
        except TimeoutError:
            return False
        finally:
            self._deferred = None
        return True

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._nobody_reads.wait()
            left_s = self._last_read + self._pace.quiet_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)
