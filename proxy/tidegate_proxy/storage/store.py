"""The content-addressed store: verified blobs and manifests as files named by their digest.

    <state>/blobs/sha256/ab/<hex>    verified, immutable, 0440
    <state>/partial/<hex>            bytes on their way in, with a record of them in `<hex>.extents`

Only a rename makes a blob visible, and only after its digest has matched. Failure policy: no trouble
with the disk may fail a pull that could do without it. A blob that cannot be opened is a miss, one
that cannot be written is not stored, and whoever has its bytes serves them; only at the start is an
unusable directory refused, while somebody is there to read why.

This module does not decide what is evicted, does not verify what an earlier process left in `partial`,
and knows neither tags nor media types: see the upkeep and the index.
"""

import asyncio
import errno
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar
from weakref import WeakValueDictionary

from tidegate_core.errors import StartRefused
from tidegate_proxy.oci.byte_range import Extent
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.leftovers import MAX_BYTES, Leftover, leftovers, tidy, trim
from tidegate_proxy.storage.partial import PartialBlob, SyncFailed
from tidegate_proxy.storage.reading import BodyBroken, OpenFile, read_piece, stream_file
from tidegate_proxy.storage.record import Record

Durability = Literal["fsync", "relaxed"]
T = TypeVar("T")

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})


class DigestMismatch(BodyBroken):
    """The bytes that came are not the ones the digest names; they are thrown away."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"what came for {digest} has another digest")
        self.digest = digest


class StoredBlob:
    """A verified blob, open for reading; its bytes stay readable even if it is evicted meanwhile."""

    __slots__ = ("_executor", "_file", "digest", "size_bytes")

    def __init__(self, digest: Digest, size_bytes: int, file: OpenFile, executor: ThreadPoolExecutor) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self._file: OpenFile | None = file
        self._executor = executor

    @property
    def file(self) -> OpenFile:
        """The open file; who needs it longer than this handle keeps a reference of its own."""
        if self._file is None:
            raise ValueError("the stored blob was closed")
        return self._file

    def stream(self, extent: Extent | None = None) -> AsyncIterator[memoryview]:
        """The whole or an extent of it, in large pieces; raises BodyBroken when the disk fails."""
        return stream_file(self.file, extent or Extent(0, self.size_bytes - 1), self._executor)

    async def content(self) -> bytes:
        """The whole in memory: for manifests, whose size the caller bounds."""
        return b"".join([piece async for piece in self.stream()])

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store:
    """The blobs below one state directory."""

    def __init__(self, state_dir: Path, *, durability: Durability) -> None:
        self.durability = durability
        self.stored: Callable[[Digest, int], None] = _untold
        """Told of every blob that got its name, and its size, from any thread."""
        self.largest_bytes: int | None = None
        """What is larger gets no name: its readers have it, and nobody else will."""
        self.spare_bytes = 0
        """What its file system had free beyond the watermark, when last looked at."""
        self.no_room: str | None = None
        """Why nothing is stored at present."""
        self.state_dir = state_dir
        self.blobs = state_dir / "blobs"
        self._partials = state_dir / "partial"
        self._device: int | None = None
        self._numbers = itertools.count()
        self._left: set[str] = set()
        self._open: WeakValueDictionary[Digest, OpenFile] = WeakValueDictionary()
        # Its own threads: a disk that hangs must not take the loop's default executor (look-ups) with it.
        self._executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix="store")

    @classmethod
    def open(cls, state_dir: Path, *, durability: Durability = "fsync") -> Self:
        """Make the directories, discard what cannot be resumed; raise StartRefused if they cannot be written.

        Blocks: call it before the loop serves. A disk that is merely full is no reason to refuse.
        """
        store = cls(state_dir, durability=durability)
        try:
            _make_directory(state_dir)
            store._device = state_dir.stat().st_dev
            _make_directory(store.blobs)
            _make_directory(store._partials)
            store._left = tidy(store._partials)
            store.trim_leftovers()
            _check_writable(store._partials)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise StartRefused(
                    f"the state directory {state_dir} cannot be written: {error.strerror or error}",
                    next_step=f"sudo install -d -m 0750 -o $(id -un) {state_dir}, or set another state_dir",
                ) from error
        return store

    def blob(self, digest: Digest) -> StoredBlob | None:
        """The verified blob, a context manager, or None. Costs one open(2), or none while others read it."""
        path = self.path(digest)
        try:
            file = self._open.get(digest)
            if file is None:
                file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            status = os.fstat(file.fd)
        except OSError:
            return None  # absent, or unreadable for whatever reason: a miss either way
        if not stat.S_ISREG(status.st_mode):
            return None
        self._open[digest] = file
        return StoredBlob(digest, status.st_size, file, self._executor)

    def partial(self, digest: Digest) -> PartialBlob:
        """A new, empty file for the bytes of a blob; raises OSError. Blocks: see `run`.

        Directories that somebody removed are made again, if that is on the file system on which they were:
        a cache must not grow under a mount point whose own has gone.
        """
        return self._create(digest, digest.encoded)

    def apart(self, digest: Digest) -> PartialBlob:
        """As `partial`, under a name of its own: beside a fetch of the same, and never resumed."""
        return self._create(digest, f"{digest.encoded}.{os.getpid()}.{next(self._numbers)}")

    def may_have_left(self, digest: Digest) -> bool:
        """Whether an unfinished fetch of the blob has left something, as far as this process knows."""
        return digest.encoded in self._left

    def left(self, digest: Digest) -> None:
        """A fetch ends here without the blob, and leaves what it has."""
        self._left.add(digest.encoded)

    def leftover(self, digest: Digest) -> tuple[PartialBlob, Record] | None:
        """The file that an unfinished fetch left, and what its record claims of it. Blocks: see `run`."""
        sync = self.durability == "fsync"
        self._left.discard(digest.encoded)
        if self.no_room is not None:
            return None
        return PartialBlob.resume(self._partials / digest.encoded, self.path(digest), sync=sync)

    def leftovers(self) -> list[Leftover]:
        """All unfinished blobs with the bytes they take, also those being filled. Blocks: see `run`."""
        return leftovers(self._partials)

    def trim_leftovers(self, max_bytes: int = MAX_BYTES) -> None:
        """Remove unfinished blobs that nobody asked for in days, or that take too much. Blocks: see `run`."""
        trim(self._partials, now=time.time(), max_bytes=max_bytes)

    def publish(self, partial: PartialBlob) -> None:
        """Make verified bytes a blob, and tell; raises as `PartialBlob.publish`. Blocks: see `run`."""
        size_bytes = partial.size_bytes()
        if self.largest_bytes is not None and size_bytes > self.largest_bytes:
            raise OSError(errno.EFBIG, f"larger than {self.largest_bytes} bytes, which is all that is kept")
        partial.publish()
        self.stored(partial.digest, size_bytes)

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether a blob may be written: one that will not be kept must not drive out those that are."""
        return self.largest_bytes is None or size_bytes <= max(self.largest_bytes, self.spare_bytes)

    def holds(self, digest: Digest) -> bool:
        """Whether a file has the name of the blob. Blocks briefly."""
        try:
            return stat.S_ISREG(self.path(digest).lstat().st_mode)
        except OSError as error:
            return error.errno not in _ABSENT

    def is_read(self, digest: Digest) -> bool:
        """Whether somebody reads the blob now."""
        return digest in self._open

    def count_read(self) -> int:
        """How many blobs are being read."""
        return len(self._open)

    def remove(self, digest: Digest) -> int:
        """Take a blob's name away; returns its size, 0 when there is none. Blocks: see `run`.

        Readers keep their bytes, and a fetch of it that is under way ends as it would. Raises OSError.
        """
        path = self.path(digest)
        try:
            size_bytes = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        self._open.pop(digest, None)  # who asks from now on is not served by those who read it still
        return size_bytes

    async def put(self, digest: Digest, data: bytes) -> bool:
        """Store a manifest that is in memory; False when the disk refused it. Raises DigestMismatch."""
        hasher = digest.hasher()
        hasher.update(data)
        if hasher.hexdigest() != digest.encoded:
            raise DigestMismatch(digest)
        try:
            await self.run(self._put, digest, data)
        except (OSError, SyncFailed):
            return False
        return True

    async def read(self, file: OpenFile, first: int, end: int, buffer: bytearray | None = None) -> memoryview:
        """A piece of an open file from `first`, at most to `end` (excluded); raises OSError.

        It is read into `buffer`, one of `Buffers`, or a fresh one.
        """
        return await read_piece(file, first, end, self._executor, buffer)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call what may block in one of the store's threads."""
        return await self.begin(function, *args)

    def begin(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """As `run`, under way at once."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def close(self) -> None:
        """End the threads once they are idle; blobs that are open stay readable from the page cache."""
        self._executor.shutdown(wait=True)

    def _put(self, digest: Digest, data: bytes) -> None:
        # Under a name of its own: two may put the same digest at once, or a fetch of it may be running.
        partial = self.apart(digest)
        try:
            partial.write(0, data)
            self.publish(partial)
        except (OSError, SyncFailed):
            partial.discard()
            raise

    def _create(self, digest: Digest, name: str) -> PartialBlob:
        if self.no_room is not None:
            raise OSError(errno.ENOSPC, self.no_room)
        path, final, sync = self._partials / name, self.path(digest), self.durability == "fsync"
        try:
            return PartialBlob.create(path, final, sync=sync)
        except FileNotFoundError:
            self._make_directories_again()
            return PartialBlob.create(path, final, sync=sync)

    def _make_directories_again(self) -> None:
        nearest = self.state_dir if self.state_dir.exists() else self.state_dir.parent
        if nearest.stat().st_dev != self._device:
            raise OSError(errno.EXDEV, f"the file system of {self.state_dir} has gone")
        _make_directory(self.state_dir)
        _make_directory(self._partials)

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.blobs / digest.algorithm / digest.encoded[:2] / digest.encoded


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o750, exist_ok=True)


def _check_writable(directory: Path) -> None:
    probe = directory / ".probe"
    probe.write_bytes(b"writable?")
    probe.unlink()


def _untold(digest: Digest, size_bytes: int) -> None:
    pass
