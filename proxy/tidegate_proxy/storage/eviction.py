"""What has to go so that the cache keeps within its limits. Pure.

Two limits: what blobs and partial files take together (`max_size`), and what the file system has free
(`min_free`). Past one of them room is made for a tenth of it more than it asks, so that not every blob
evicts another one. This module looks at nothing and removes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tidegate_proxy.storage.catalogue import Entry
from tidegate_proxy.storage.limits import Limits

_SLACK = 10
"""A tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """What is taken: by blobs and partial files, and of the file system by whomever."""

    stored_bytes: int
    partial_bytes: int
    free_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """Bytes that have to go, and those that should while at it, the first among them; 0 when all is well."""

    must: int = 0
    should: int = 0

    def less(self, size_bytes: int) -> "Excess":
        """What is left of it when so much has gone."""
        return Excess(must=max(self.must - size_bytes, 0), should=max(self.should - size_bytes, 0))


def excess(limits: Limits, occupancy: Occupancy) -> Excess:
    """By how much the limits are passed."""
    held = occupancy.stored_bytes + occupancy.partial_bytes
    watermark = limits.watermark(occupancy.disk_bytes)
    over = held - limits.max_size_bytes
    short = watermark - occupancy.free_bytes
    return Excess(
        must=max(over, short, 0),
        should=max(
            over + limits.max_size_bytes // _SLACK if over > 0 else 0,
            short + watermark // _SLACK if short > 0 else 0,
        ),
    )


def chosen(oldest: Iterable[Entry], due: Excess, *, slack_bytes: int) -> list[Entry]:
    """Which of these go, the oldest first.

    Once what must go is gone, one that is larger than `slack_bytes` stays, and all after it: it may be the
    only one, and within the limit.
    """
    victims = []
    for entry in oldest:
        if due.should == 0 or (due.must == 0 and entry.size_bytes > slack_bytes):
            break
        victims.append(entry)
        due = due.less(entry.size_bytes)
    return victims
