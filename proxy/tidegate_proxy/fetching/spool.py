"""The bytes between the origin and the disk: a bounded queue that grows into large pieces.

One side puts chunks as they arrive and waits while too much is queued; the other takes all there is
at once. So a slow origin's bytes are on disk at once, and a fast one's are written and hashed a
mebibyte at a time. This module does no I/O.
"""

import asyncio

SPOOL_BYTES = 1 << 20


class Spool:
    """One producer, one consumer; holds less than `limit_bytes` plus one chunk."""

    def __init__(self, limit_bytes: int = SPOOL_BYTES) -> None:
        self._limit = limit_bytes
        self._chunks: list[bytes | memoryview] = []
        self._queued = 0
        self._ended = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    async def put(self, chunk: bytes | memoryview) -> None:
        """Queue a chunk; wait first while the queue is full."""
        while self._queued >= self._limit:
            self._drained.clear()
            await self._drained.wait()
        self._chunks.append(chunk)
        self._queued += len(chunk)
        self._filled.set()

    def end(self) -> None:
        """No chunk will follow."""
        self._ended = True
        self._filled.set()

    async def take(self) -> list[bytes | memoryview]:
        """All that is queued, waiting for something; nothing at the end."""
        while not self._chunks and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        chunks, self._chunks, self._queued = self._chunks, [], 0
        self._drained.set()
        return chunks
