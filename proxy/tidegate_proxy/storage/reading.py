"""How a stored file is read while others are served: preadv2(2) with RWF_NOWAIT, then a thread.

What is in memory is copied on the event loop, which is what a hit costs; what is not in the page
cache, or lies on a file system that knows no RWF_NOWAIT, is read in a thread of the given executor.
tmpfs knows none either, but is memory. This module does not know digests, and does not write.
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.byte_range import Extent

PIECE_BYTES = 1 << 18
_BUFFERS_KEPT = 4  # one is read into, one handed over, the others may wait in a transport

# The page cache does not hold the bytes, or this file system cannot tell.
_WOULD_BLOCK = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class BodyBroken(TidegateError):
    """A body cannot be finished as promised: who sends it on cuts the connection and never ends it well."""


class OpenFile:
    """A file descriptor that closes when the last one who reads through it lets go.

    Sharing by reference keeps the number of descriptors at one per blob being read, and a read that
    is still in a thread when its reader is cancelled can never meet a number that was used again.
    """

    __slots__ = ("__weakref__", "fd", "read_flags")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.read_flags = os.RWF_NOWAIT

    def __del__(self) -> None:
        os.close(self.fd)


class Buffers:
    """Buffers to read into, each used again once nobody views it any more.

    A transport may keep a view of a piece long after it was handed over, so a piece needs a buffer of its
    own; but fresh memory has to be zeroed first, which costs half as much as reading into it.
    """

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def take(self) -> bytearray:
        """A buffer of PIECE_BYTES that nobody looks at, with whatever was in it."""
        for buffer in self._buffers:
            if not _is_viewed(buffer):
                return buffer
        buffer = bytearray(PIECE_BYTES)
        if len(self._buffers) < _BUFFERS_KEPT:
            self._buffers.append(buffer)
        return buffer


def _is_viewed(buffer: bytearray) -> bool:
    """Whether there is a view of it: while there is, a bytearray cannot change its length."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return True
    return False


async def read_piece(
    file: OpenFile,
    first: int,
    end: int,
    executor: Executor | None = None,
    buffer: bytearray | None = None,
) -> memoryview:
    """Bytes from `first`, at least one, at most to `end` (excluded) or PIECE_BYTES; raises OSError.

    They are read into `buffer` (of PIECE_BYTES), or a fresh one. A file that ends at `first` or before
    raises EIO: it should be longer.
    """
    wanted = min(end - first, PIECE_BYTES)
    view = memoryview(bytearray(wanted) if buffer is None else buffer)[:wanted]
    try:
        got = os.preadv(file.fd, [view], first, file.read_flags)
    except OSError as error:
        if error.errno not in _WOULD_BLOCK:
            raise
        if error.errno == errno.EOPNOTSUPP and _is_memory(file.fd):
            file.read_flags = 0
            got = _read_blocking(file, view, first)
        else:
            loop = asyncio.get_running_loop()
            got = await loop.run_in_executor(executor, _read_blocking, file, view, first)
    if got == 0:
        raise OSError(errno.EIO, f"the file ends at or before byte {first}")
    return view[:got]


async def stream_file(
    file: OpenFile, extent: Extent, executor: Executor | None = None
) -> AsyncIterator[memoryview]:
    """The bytes of `extent` in pieces of at most PIECE_BYTES; raises BodyBroken when they cannot be read."""
    position, end = extent.first, extent.last + 1
    buffers = Buffers()
    while position < end:
        try:
            piece = await read_piece(file, position, end, executor, buffers.take())
        except OSError as error:
            raise BodyBroken(f"a stored blob cannot be read: {error}") from error
        position += len(piece)
        yield piece
        del piece  # or its buffer would look as if the transport still had it


def _read_blocking(file: OpenFile, view: memoryview, first: int) -> int:
    return os.preadv(file.fd, [view], first)


def _is_memory(fd: int) -> bool:
    """Whether the file lies on tmpfs: of all file systems only those in memory know seals (fcntl(2))."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True
