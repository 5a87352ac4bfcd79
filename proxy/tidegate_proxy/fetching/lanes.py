"""Who brings which bytes of a blob: one lane for each request that is under way.

Most blobs come in one lane, from front to back. A reader that wants bytes far ahead of it gets a lane of its
own for them; a byte belongs to the youngest lane that covers it, so that each is written by one lane only and
comes from the origin once, but for what a lane reads through because asking anew would cost more.

This module does no I/O: it decides who fetches what.
"""

from dataclasses import dataclass

from tidegate_proxy.fetching.healing import HealedBody
from tidegate_proxy.storage.extents import Extents, Span

NEAR_BYTES = 1 << 20
"""What is no further ahead of a lane is waited for; what is there and no longer is read through once more."""


@dataclass(slots=True, eq=False)
class Lane:
    """One request: what has come of it lies between `written` and `body.position`, on its way to the file."""

    body: HealedBody
    written: int

    def covers(self, position: int) -> bool:
        """Whether it will write that byte, if it is nobody else's."""
        end = self.body.end
        return self.written <= position and (end is None or position < end)


class Lanes:
    """The lanes of one blob, oldest first, over what is present of it."""

    def __init__(self, present: Extents) -> None:
        self._present = present
        self._lanes: list[Lane] = []

    def __len__(self) -> int:
        return len(self._lanes)

    def open(self, lane: Lane) -> None:
        """A request is made; older lanes end before it where reading through it would be a waste."""
        first, end = lane.written, lane.body.end
        for other in self._lanes:
            other_end = other.body.end
            if not (end is not None and other_end is not None and other.covers(first)):
                continue
            if other.body.position <= first and (end - first >= NEAR_BYTES or end >= other_end):
                other.body.shorten(first)
        self._lanes.append(lane)

    def close(self, lane: Lane) -> None:
        """The request has ended, well or not: what it did not write is nobody's. Idempotent."""
        if lane in self._lanes:
            self._lanes.remove(lane)

    def needed(self, position: int, end: int) -> Span | None:
        """What somebody who waits for the byte at `position`, and goes on to `end`, should have fetched.

        None when the byte is there, or a lane brings it soon.
        """
        gap = next(self._present.missing(position, end), None)
        if gap is None or gap.first > position:
            return None
        lane = self._owner(position)
        if lane is not None and position - lane.body.position < NEAR_BYTES:
            return None
        return Span(position, self._stop(position, gap.end))

    def next_gap(self, size_bytes: int, *, read_through: bool) -> Span | None:
        """The first missing bytes that are in no lane, as far as one request should read.

        With `read_through`, short stretches that are there already are part of it.
        """
        bridged_bytes = NEAR_BYTES if read_through else 0
        found: Span | None = None
        for gap in self._present.missing(0, size_bytes):
            position = gap.first
            while position < gap.end:
                stop = self._stop(position, gap.end)
                if self._owner(position) is None:
                    if found is None:
                        found = Span(position, stop)
                    elif position - found.end < bridged_bytes:
                        found = Span(found.first, stop)
                    else:
                        return found
                elif found is not None:
                    return found
                position = stop
        return found

    def share(self, lane: Lane, first: int, end: int) -> list[Span]:
        """Which of the bytes that came in a lane are missing, and its to write."""
        missing = list(self._present.missing(first, end))
        younger = self._lanes[self._lanes.index(lane) + 1 :]
        if not younger:
            return missing
        theirs = Extents((each.written, end if each.body.end is None else each.body.end) for each in younger)
        return [part for gap in missing for part in theirs.missing(gap.first, gap.end)]

    def _owner(self, position: int) -> Lane | None:
        return next((lane for lane in reversed(self._lanes) if lane.covers(position)), None)

    def _stop(self, position: int, end: int) -> int:
        """How far from `position` on, at most to `end`, the same lanes cover the bytes."""
        for lane in self._lanes:
            for edge in (lane.written, lane.body.end):
                if edge is not None and position < edge < end:
                    end = edge
        return end
