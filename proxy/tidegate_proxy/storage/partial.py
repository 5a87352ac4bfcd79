"""A blob on its way into the store: a file in `partial`, written from the front, then renamed.

Every function here blocks and raises OSError: the store's threads call them. This module does not
hash: whoever publishes has verified.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.reading import OpenFile


class SyncFailed(Exception):
    """The kernel could not write the bytes out: what it still shows of this file may not be them."""


class PartialBlob:
    """The file of one blob while it is incomplete or unverified."""

    def __init__(self, file: OpenFile, path: Path, final: Path, *, sync: bool) -> None:
        self.file = file
        self._path = path
        self._final = final
        self._sync = sync

    @classmethod
    def create(cls, path: Path, final: Path, *, sync: bool) -> Self:
        """Make the file at `path` anew; readers of an older one keep theirs."""
        with suppress(FileNotFoundError):
            path.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return cls(OpenFile(os.open(path, flags, 0o600)), path, final, sync=sync)

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `first`; after an OSError some of it may be there."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.file.fd, view, first)
            view = view[written:]
            first += written

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
        if self._sync:
            _sync_directory(self._final.parent)

    @property
    def digest(self) -> Digest:
        """What the blob will be called, by its place in the store."""
        return Digest(self._final.parent.parent.name, self._final.name)

    def size_bytes(self) -> int:
        """How many bytes the file has now."""
        return os.fstat(self.file.fd).st_size

    def discard(self) -> None:
        """Take the name away; readers keep the bytes. Never raises: a leftover goes at the next start."""
        with suppress(OSError):
            self._path.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
