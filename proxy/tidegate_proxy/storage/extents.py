"""Which bytes of a blob are there: disjoint spans `[first, end)` in order, `end` excluded.

A blob that is fetched from front to back has one; lazy snapshotters make many. Pure. Not to be confused
with `oci.byte_range.Extent`, the one range that an HTTP message speaks of, last byte included.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """The bytes from `first` up to `end`, which is excluded."""

    first: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.first


class Extents:
    """A set of byte positions, kept as spans that neither overlap nor touch."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in spans:
            self.add(first, end)

    def add(self, first: int, end: int) -> None:
        """The bytes from `first` to `end` are there."""
        if first >= end:
            return
        if self._ends and self._ends[-1] == first:  # front to back: what nearly always happens
            self._ends[-1] = end
            return
        low, high = bisect_left(self._ends, first), bisect_right(self._firsts, end)
        if low < high:
            first, end = min(first, self._firsts[low]), max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]

    def run_end(self, position: int) -> int:
        """Where the bytes that follow `position` without a gap end; `position` itself when it is missing."""
        at = bisect_right(self._firsts, position) - 1
        return max(position, self._ends[at]) if at >= 0 else position

    def missing(self, first: int, end: int) -> Iterator[Span]:
        """The gaps between `first` and `end`, in order."""
        at = max(0, bisect_right(self._firsts, first) - 1)
        for have, until in zip(self._firsts[at:], self._ends[at:], strict=True):
            if have >= end:
                break
            if first < have:
                yield Span(first, have)
            first = max(first, until)
        if first < end:
            yield Span(first, end)

    def spans(self) -> Iterator[Span]:
        """All spans in order."""
        return map(Span, self._firsts, self._ends)

    @property
    def size_bytes(self) -> int:
        """How many bytes are there."""
        return sum(self._ends) - sum(self._firsts)
