"""Byte ranges: RFC 9110 section 14 (Range, Content-Range, 416).

A Range field that is malformed, has several ranges or another unit reads as None: the RFC lets a
server ignore it and answer 200 with the whole, and no registry client asks for several ranges.
This module does not know If-Range and does not build multipart/byteranges.
"""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.IGNORECASE | re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]+)-([0-9]+)/([0-9]+|\*)", re.IGNORECASE | re.ASCII)
# Larger than any file. Longer numbers mean the same, and int() refuses those of thousands of digits.
_BEYOND_ANY_SIZE = 10**18


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes `first` to `last`, both included, as HTTP counts them."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many bytes, at least one."""
        return self.last - self.first + 1

    def content_range(self, size_bytes: int | None) -> str:
        """The Content-Range value of a 206; `*` stands for a size that is not known yet."""
        return f"bytes {self.first}-{self.last}/{'*' if size_bytes is None else size_bytes}"


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """No byte of the range exists: 416."""

    size_bytes: int

    def content_range(self) -> str:
        """The Content-Range value of the 416."""
        return f"bytes */{self.size_bytes}"


@dataclass(frozen=True, slots=True)
class From:
    """`bytes=N-`: how a cut download is resumed."""

    first: int

    def resolve(self, size_bytes: int) -> Extent | Unsatisfiable:
        """The bytes meant in a representation of that size."""
        return _within(size_bytes, self.first, size_bytes - 1)

    def __str__(self) -> str:
        return f"bytes={self.first}-"


@dataclass(frozen=True, slots=True)
class Closed:
    """`bytes=N-M`: what lazy snapshotters ask."""

    first: int
    last: int

    def resolve(self, size_bytes: int) -> Extent | Unsatisfiable:
        """The bytes meant in a representation of that size; a last position past its end means the end."""
        return _within(size_bytes, self.first, self.last)

    def __str__(self) -> str:
        return f"bytes={self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Suffix:
    """`bytes=-N`: the last N bytes, for a table of contents at the end."""

    length: int

    def resolve(self, size_bytes: int) -> Extent | Unsatisfiable:
        """The bytes meant in a representation of that size; the whole when it is shorter than the suffix."""
        return _within(size_bytes, max(0, size_bytes - self.length), size_bytes - 1)

    def __str__(self) -> str:
        return f"bytes=-{self.length}"


RangeRequest = From | Closed | Suffix


def parse_range(header: str | None) -> RangeRequest | None:
    """The one byte range that a Range field asks for; None means answer with the whole."""
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return Suffix(_position(suffix))
    if not last:
        return From(_position(first))
    closed = Closed(_position(first), _position(last))
    return closed if closed.first <= closed.last else None


def parse_content_range(header: str) -> tuple[int, int, int | None] | None:
    """(first, last, size or None for `*`) of a 206; None when malformed, contradictory or of another unit."""
    match = _CONTENT_RANGE.fullmatch(header.strip(" \t"))
    if match is None:
        return None
    first, last = _position(match[1]), _position(match[2])
    size_bytes = None if match[3] == "*" else _position(match[3])
    if first > last or (size_bytes is not None and last >= size_bytes):
        return None
    return first, last, size_bytes


def _within(size_bytes: int, first: int, last: int) -> Extent | Unsatisfiable:
    # Of an empty representation even a suffix is unsatisfiable here: Content-Range cannot express no bytes.
    return Extent(first, min(last, size_bytes - 1)) if first < size_bytes else Unsatisfiable(size_bytes)


def _position(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else _BEYOND_ANY_SIZE
