"""The record of a partial blob: which of its bytes are there, and what they hash to (decision 0031).

    tidegate-partial 1 <size of the blob>
    prefix <end> <hex>            the blob's first <end> bytes, by the digest's own algorithm
    extent <first> <end> <hex>    other bytes, by SHA-256

A line is appended after its bytes were written, never before. It is a claim all the same: after a crash of
the machine it may be there without them, so bytes are believed only when they hash to what their line says,
and a blob only when it hashes to its digest. What follows a line that cannot be read is not there. Pure.
"""

import re
from dataclasses import dataclass, field
from typing import Self

MAX_RECORD_BYTES = 16 << 20

_HEAD = re.compile(r"tidegate-partial 1 ([0-9]{1,18})")
_LINE = re.compile(r"(?:prefix|extent ([0-9]{1,18})) ([0-9]{1,18}) ([0-9a-f]{64,128})")


@dataclass(frozen=True, slots=True)
class Claim:
    """The bytes from `first` to `end` hash to `hexdigest`."""

    first: int
    end: int
    hexdigest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was written of a blob of `size_bytes`: `prefixes` grow, `extents` lie anywhere."""

    size_bytes: int
    prefixes: tuple[Claim, ...] = field(default=())
    extents: tuple[Claim, ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The record of a file, up to its first line that is none; None without a head."""
        lines = text.split("\n")[:-1]  # what has no line feed was not written to its end
        head = _HEAD.fullmatch(lines[0]) if lines else None
        if head is None:
            return None
        size_bytes = int(head[1])
        prefixes: list[Claim] = []
        extents: list[Claim] = []
        for line in lines[1:]:
            match = _LINE.fullmatch(line)
            if match is None:
                break
            claim = Claim(int(match[1] or 0), int(match[2]), match[3])
            if not claim.first < claim.end <= size_bytes:
                break
            if match[1] is not None:
                extents.append(claim)
            elif not prefixes or claim.end > prefixes[-1].end:
                prefixes.append(claim)
        return cls(size_bytes=size_bytes, prefixes=tuple(prefixes), extents=tuple(extents))

    @property
    def prefix_end(self) -> int:
        """How many of the first bytes are claimed."""
        return self.prefixes[-1].end if self.prefixes else 0


def head_line(size_bytes: int) -> str:
    """The first line of a record."""
    return f"tidegate-partial 1 {size_bytes}\n"


def prefix_line(end: int, hexdigest: str) -> str:
    """The blob's first `end` bytes are written."""
    return f"prefix {end} {hexdigest}\n"


def extent_line(first: int, end: int, hexdigest: str) -> str:
    """The bytes from `first` to `end` are written."""
    return f"extent {first} {end} {hexdigest}\n"
