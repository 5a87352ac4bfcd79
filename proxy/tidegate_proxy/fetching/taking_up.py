"""Taking up what an earlier process left of a blob (C13): its bytes count once they are hashed again.

A prefix is believed up to the last claim that its hash meets, any other stretch when it meets its own; what
does not is fetched anew. That makes a wrong byte on the disk cost bytes of the origin and nothing else; the
blob's digest decides in the end, as always. This module blocks and runs in the store's threads, a few
mebibytes a call.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

from tidegate_proxy.oci.digest import Digest, Hasher
from tidegate_proxy.storage.extents import Extents, Span
from tidegate_proxy.storage.partial import PartialBlob
from tidegate_proxy.storage.record import Claim, Record

_STEP_BYTES = 4 << 20
_READ_BYTES = 1 << 20


def claimed(record: Record) -> Extents:
    """The bytes that a record says are there."""
    spans = [(0, record.prefix_end), *((claim.first, claim.end) for claim in record.extents)]
    return Extents(spans)


class Leftover:
    """The verification of one partial blob; `hasher` is that of its first `hashed` bytes."""

    def __init__(self, digest: Digest, partial: PartialBlob, record: Record) -> None:
        self.partial = partial
        self.record = record
        self.claimed = claimed(record)
        self.hashed = 0
        self.hasher: Hasher = digest.hasher()
        self._good: list[Claim] = []
        self._steps = self._verify()

    def step(self) -> list[Span] | None:
        """Hash a few mebibytes more; the spans that proved right meanwhile, or None when all is done."""
        try:
            return next(self._steps, None)
        except OSError:
            return None  # the disk does not give them back: they are missing

    def settle(self) -> None:
        """Note what proved right, and nothing else, as the beginning of what will be noted."""
        prefix = (self.hashed, self.hasher.hexdigest()) if self.hashed else None
        self.partial.begin_record(self.record.size_bytes, prefix)
        for claim in self._good:
            self.partial.note_extent(claim.first, claim.end, claim.hexdigest)

    def _verify(self) -> Iterator[list[Span]]:
        found: list[Span] = []
        position, hasher = 0, self.hasher.copy()
        with suppress(OSError):
            for claim in self.record.prefixes:
                for piece in self._pieces(position, claim.end):
                    hasher.update(piece)
                    position += len(piece)
                    if position - self.hashed >= _STEP_BYTES:
                        yield found
                        found = []
                if hasher.hexdigest() != claim.hexdigest:
                    break
                found.append(Span(self.hashed, claim.end))
                self.hashed, self.hasher = claim.end, hasher.copy()
        yield found
        for claim in self.record.extents:
            if claim.end > self.hashed and self._is_right(claim):
                self._good.append(claim)
                yield [Span(claim.first, claim.end)]

    def _is_right(self, claim: Claim) -> bool:
        hasher = hashlib.sha256()
        try:
            for piece in self._pieces(claim.first, claim.end):
                hasher.update(piece)
        except OSError:
            return False
        return hasher.hexdigest() == claim.hexdigest

    def _pieces(self, first: int, end: int) -> Iterator[bytes]:
        while first < end:
            piece = self.partial.read(first, min(end, first + _READ_BYTES))
            first += len(piece)
            yield piece
