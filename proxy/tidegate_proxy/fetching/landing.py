"""Where bytes land: the file of a blob, the hash of its front, and the record of what is there.

Bytes that come in order are hashed on their way; what came before its turn is hashed from the file when its
turn comes. Whatever is noted is noted after it was written. Every function here blocks: the store's threads
call them, one at a time in order, any number out of order.
"""

import hashlib
import threading

from tidegate_proxy.oci.digest import Digest, Hasher
from tidegate_proxy.storage.extents import Span
from tidegate_proxy.storage.partial import PartialBlob

_NOTED_EVERY_BYTES = 256 << 10
_HASHED_AT_ONCE_BYTES = 8 << 20
_READ_BYTES = 1 << 20

Chunks = list[bytes | memoryview]


class Landing:
    """One partial blob while it grows; `hasher` is that of its first `hashed` bytes."""

    def __init__(self, digest: Digest, partial: PartialBlob, *, size_bytes: int | None) -> None:
        """With the first bytes a record for `size_bytes` is begun; None where there is one, or no size."""
        self.partial = partial
        self._unrecorded = size_bytes
        self._beginning = threading.Lock()
        self.hashed = 0
        self.hasher: Hasher = digest.hasher()
        self._noted = 0

    def take_up(self, hashed: int, hasher: Hasher) -> None:
        """Go on behind a prefix that was verified."""
        self.hashed = self._noted = hashed
        self.hasher = hasher

    def write(self, first: int, chunks: Chunks, shares: list[Span], *, in_order: bool) -> None:
        """Write those of the bytes from `first` on that lie in `shares`; raises OSError.

        With `in_order` what continues the front is hashed, too: one caller at a time.
        """
        # One large write and one large hash: each lets the loop have the interpreter lock meanwhile.
        piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        for share in shares:
            part = piece
            if share.size_bytes != len(piece):
                part = memoryview(piece)[share.first - first : share.end - first]
            self.partial.write(share.first, part)
            if self._unrecorded is not None:
                self._begin_record()
            if in_order and share.first == self.hashed:
                # Only now: after a failed write the hash still is that of the bytes that are there.
                self._hash(part)
                if self.hashed - self._noted >= _NOTED_EVERY_BYTES:
                    self.note_front()
            else:
                self.partial.note_extent(share.first, share.end, hashlib.sha256(part).hexdigest())

    def hash_on(self, end: int) -> None:
        """Hash what is in the file behind the front, at most to `end` and a few mebibytes; raises OSError."""
        end = min(end, self.hashed + _HASHED_AT_ONCE_BYTES)
        while self.hashed < end:
            self._hash(self.partial.read(self.hashed, min(end, self.hashed + _READ_BYTES)))

    def note_front(self) -> None:
        """Note all that is hashed."""
        if self.hashed > self._noted:
            self.partial.note_prefix(self.hashed, self.hasher.hexdigest())
            self._noted = self.hashed

    def _begin_record(self) -> None:
        with self._beginning:
            if self._unrecorded is not None:
                self.partial.begin_record(self._unrecorded)
                self._unrecorded = None

    def _hash(self, part: bytes | memoryview) -> None:
        self.hasher.update(part)
        self.hashed += len(part)
