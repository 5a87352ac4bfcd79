"""The bytes between the origin and the disk: a bounded queue that grows into large pieces.

One side puts chunks as they arrive and waits while too much is queued; the other takes all there is, and
right after it took something waits a few milliseconds for a piece that is worth it. So a slow origin's bytes
are on disk at once, and a fast one's are written, hashed and told to readers a quarter of a mebibyte or more
at a time. This module does no I/O.
"""

import asyncio
from contextlib import suppress

SPOOL_BYTES = 1 << 20
PIECE_BYTES = 1 << 18
PAUSE_S = 0.003


class Spool:
    """One producer, one consumer; holds less than `limit_bytes` plus one chunk."""

    def __init__(self, limit_bytes: int = SPOOL_BYTES) -> None:
        self._limit = limit_bytes
        self._chunks: list[bytes | memoryview] = []
        self._queued = 0
        self._ended = False
        self._last_taken = float("-inf")
        self._filled = asyncio.Event()
        self._enough = asyncio.Event()
        self._drained = asyncio.Event()

    async def put(self, chunk: bytes | memoryview) -> None:
        """Queue a chunk; wait first while the queue is full."""
        while self._queued >= self._limit:
            self._drained.clear()
            await self._drained.wait()
        self._chunks.append(chunk)
        self._queued += len(chunk)
        self._filled.set()
        if self._queued >= PIECE_BYTES:
            self._enough.set()

    def end(self) -> None:
        """No chunk will follow."""
        self._ended = True
        self._filled.set()
        self._enough.set()

    async def take(self) -> list[bytes | memoryview]:
        """All that is queued, waiting for something; nothing at the end."""
        while not self._chunks and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        loop = asyncio.get_running_loop()
        pause_s = self._last_taken + PAUSE_S - loop.time()
        if pause_s > 0 and self._queued < PIECE_BYTES and not self._ended:
            self._enough.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._enough.wait()
        self._last_taken = loop.time()
        chunks, self._chunks, self._queued = self._chunks, [], 0
        self._drained.set()
        return chunks
