"""The tail: the last bytes of a body that leave only when its digest has matched (I2).

A client that misses the last bytes has no complete body, so a wrong one never completes. Where the
size is unknown every byte may be among the last, so the newest ones are always held. This module
does no I/O and computes no digest.
"""

from collections import deque

TAIL_BYTES = 32 * 1024


def releasable(received_bytes: int, size_bytes: int | None) -> int:
    """How many of the first bytes of a body may leave before its digest is known."""
    if size_bytes is None:
        return max(0, received_bytes - TAIL_BYTES)
    return max(0, min(received_bytes, size_bytes - TAIL_BYTES))


class HeldTail:
    """The bytes in memory that may not leave yet, for a reader that has no file to go back to."""

    def __init__(self, position: int, size_bytes: int | None) -> None:
        self._received = position
        self._left = position
        self._size = size_bytes
        self._held: deque[memoryview] = deque()

    def push(self, chunk: bytes | memoryview) -> list[memoryview]:
        """Take the next bytes; return those that may leave now, in order."""
        self._held.append(memoryview(chunk))
        self._received += len(chunk)
        return self._leave(releasable(self._received, self._size))

    def release(self) -> list[memoryview]:
        """All that is held: only for a body whose digest has matched."""
        return self._leave(self._received)

    def _leave(self, up_to: int) -> list[memoryview]:
        leaving: list[memoryview] = []
        while self._left < up_to:
            chunk = self._held.popleft()
            share = up_to - self._left
            if len(chunk) > share:
                self._held.appendleft(chunk[share:])
                chunk = chunk[:share]
            leaving.append(chunk)
            self._left += len(chunk)
        return leaving
