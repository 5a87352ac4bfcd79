"""A blob on its way into the store: a sparse file in `partial` with a record beside it, then renamed.

Bytes are written anywhere, and noted in the record once they are (see `record`). The file is locked as long
as it is open: what another process still fills is not taken up. Every function here blocks and raises
OSError: the store's threads call them. This module does not verify: whoever publishes has.
"""

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.leftovers import locked, record_of
from tidegate_proxy.storage.reading import OpenFile
from tidegate_proxy.storage.record import (
    MAX_RECORD_BYTES,
    Record,
    extent_line,
    head_line,
    prefix_line,
)


class SyncFailed(Exception):
    """The kernel could not write the bytes out: what it still shows of this file may not be them."""


class PartialBlob:
    """The file of one blob while it is incomplete or unverified."""

    def __init__(self, file: OpenFile, path: Path, final: Path, *, sync: bool) -> None:
        self.file = file
        self._path = path
        self._final = final
        self._sync = sync
        self._record: OpenFile | None = None
        self._has_record = False

    @classmethod
    def create(cls, path: Path, final: Path, *, sync: bool) -> Self:
        """Make the file at `path` anew; readers of an older one keep theirs."""
        for old in (record_of(path), path):
            with suppress(FileNotFoundError):
                old.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = OpenFile(os.open(path, flags, 0o600))
        locked(file.fd)
        return cls(file, path, final, sync=sync)

    @classmethod
    def resume(cls, path: Path, final: Path, *, sync: bool) -> tuple[Self, Record] | None:
        """The file that a fetch left at `path`, and what its record claims; None when it is of no use."""
        try:
            file = OpenFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            record = _read_record(record_of(path))
        except OSError:
            return None
        status = os.fstat(file.fd)
        if record is None or not stat.S_ISREG(status.st_mode) or status.st_size > record.size_bytes:
            return None
        return (cls(file, path, final, sync=sync), record) if locked(file.fd) else None

    def begin_record(self, size_bytes: int, prefix: tuple[int, str] | None = None) -> None:
        """Begin the record anew: what is noted from now on can be resumed by another process.

        `prefix` is what is there already. Never raises: a blob without a record just cannot be resumed.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        raw = (head_line(size_bytes) + (prefix_line(*prefix) if prefix else "")).encode()
        try:
            record = OpenFile(os.open(record_of(self._path), flags, 0o600))
            self._has_record = True
            if os.write(record.fd, raw) == len(raw):
                self._record = record
        except OSError:
            return

    def note_prefix(self, end: int, hexdigest: str) -> None:
        """The first `end` bytes are written and hash to this, by the digest's algorithm. Never raises."""
        self._append(prefix_line(end, hexdigest))

    def note_extent(self, first: int, end: int, hexdigest: str) -> None:
        """The bytes from `first` to `end` are written and hash to this, by SHA-256. Never raises."""
        self._append(extent_line(first, end, hexdigest))

    def _append(self, line: str) -> None:
        if self._record is None:
            return
        raw = line.encode()
        try:
            whole = os.write(self._record.fd, raw) == len(raw)
        except OSError:
            whole = False
        if not whole:
            self._record = None  # what would follow a torn line could not be read

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `first`; after an OSError some of it may be there."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.file.fd, view, first)
            view = view[written:]
            first += written

    def read(self, first: int, end: int) -> bytes:
        """The bytes from `first` to `end`; raises OSError when they are not there."""
        pieces = []
        while first < end:
            piece = os.pread(self.file.fd, end - first, first)
            if not piece:
                raise OSError(f"{self._path} ends at byte {first}")
            pieces.append(piece)
            first += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def publish(self) -> None:
        """Make the verified bytes a blob of the store: synced first, so that no name outlives its bytes.

        Raises SyncFailed when the bytes may be lost, OSError when only the name could not be given.
        """
        if self._sync:
            try:
                os.fdatasync(self.file.fd)
            except OSError as error:
                raise SyncFailed(str(error)) from error
        os.fchmod(self.file.fd, 0o440)
        if not os.path.samestat(self._path.stat(), os.fstat(self.file.fd)):
            raise FileExistsError(f"{self._path} is somebody else's by now")
        try:
            self._path.rename(self._final)
        except FileNotFoundError:
            # The first blob of its algorithm or prefix, or somebody emptied the state directory.
            for directory in (self._final.parents[2], self._final.parents[1], self._final.parent):
                directory.mkdir(mode=0o750, exist_ok=True)
            self._path.rename(self._final)
        if self._has_record:
            with suppress(OSError):
                record_of(self._path).unlink()
        if self._sync:
            _sync_directory(self._final.parent)

    @property
    def digest(self) -> Digest:
        """What the blob will be called, by its place in the store."""
        return Digest(self._final.parent.parent.name, self._final.name)

    def size_bytes(self) -> int:
        """How many bytes the file has now."""
        return os.fstat(self.file.fd).st_size

    def let_go(self) -> None:
        """Nothing will be written any more: who finds the file may take it up. Does not block."""
        self._record = None
        with suppress(OSError):
            fcntl.flock(self.file.fd, fcntl.LOCK_UN)

    def discard(self) -> None:
        """Take the names away; readers keep the bytes. Never raises: a leftover goes at the next start."""
        self._record = None
        with suppress(OSError):
            if os.path.samestat(self._path.stat(), os.fstat(self.file.fd)):
                for path in (record_of(self._path), self._path) if self._has_record else (self._path,):
                    path.unlink(missing_ok=True)


def _read_record(path: Path) -> Record | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        raw = file.read(MAX_RECORD_BYTES)
    return Record.parse(raw.decode("ascii", errors="replace"))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
