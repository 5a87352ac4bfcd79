"""Answers to steered names as they were on the wire, aged on replay and kept for when they are stale.

One `Shelf` holds what one resolver said over one transport, keyed by the whole query but its id:
cookies, EDNS sizes and the case of the name all tell queries apart. TTLs are aged (RFC 1035 section
3.2.1); an answer whose time is over stays for `stale_max_s` and is told with a TTL of 30 (RFC 8767
section 4). The clock is the caller's; nothing here sends or learns.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tidegate_dns.address import LearnedAddress
from tidegate_dns.policy import Keepable, QuestionKey
from tidegate_dns.reply import retold

STALE_TTL_S = 30
RENDERED_FOR_S = 1.0
"""TTLs are counted in seconds, so an aged answer is right for one second."""

_TTL = struct.Struct(">I")


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """One answer and the rendering of it that is right at the moment."""

    qname: str
    answer: bytes
    keepable: Keepable
    addresses: tuple[LearnedAddress, ...]
    kept_at: float
    key: QuestionKey
    rendered: bytes = b""
    """The answer behind its id, with the TTLs of this second."""
    rendered_until: float = 0.0

    def is_fresh(self, now: float) -> bool:
        return now < self.kept_at + self.keepable.fresh_s

    def render(self, now: float) -> tuple[LearnedAddress, ...]:
        """Age the TTLs to `now`, or set them to 30 when the answer is stale; what to learn with it.

        The learned times to live reach one second further than the answer's: it is replayed that long.
        """
        age = max(0, int(now - self.kept_at))
        fresh = self.is_fresh(now)

        def told(ttl: int) -> int:
            return max(0, ttl - age) if fresh else STALE_TTL_S

        self.rendered = self._with_ttls(told)[2:]
        self.rendered_until = now + RENDERED_FOR_S
        if fresh:
            over = self.kept_at + min(age + RENDERED_FOR_S, self.keepable.fresh_s)
            self.rendered_until = min(self.rendered_until, over)
        return tuple(LearnedAddress(a.address, told(a.ttl_s) + 1) for a in self.addresses)

    def stale_for(self, query: bytes, *, over_udp: bool) -> bytes | None:
        """This answer with TTLs of 30, told to a query that asks the same in other bytes."""
        aged = self._with_ttls(lambda _: STALE_TTL_S)
        return retold(aged, query, additional_offset=self.keepable.additional_offset, over_udp=over_udp)

    def _with_ttls(self, told: Callable[[int], int]) -> bytes:
        message = bytearray(self.answer)
        for offset, ttl in self.keepable.ttls:
            _TTL.pack_into(message, offset, told(ttl))
        return bytes(message)


class Shelf:
    """What one resolver said over one transport; bounded by count and by bytes, oldest out first."""

    def __init__(self, *, stale_max_s: float, max_answers: int, max_bytes: int) -> None:
        self._stale_max_s = stale_max_s
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._bytes = 0
        self._by_question: dict[QuestionKey, Kept] = {}
        self.by_query: dict[bytes, Kept] = {}
        """The query behind its id -> the answer: what the hot path reads directly."""

    def __len__(self) -> int:
        return len(self.by_query)

    def put(self, query: bytes, kept: Kept) -> None:
        """Keep an answer, in the place of any earlier one to the same query."""
        key = query[2:]
        self._drop(key)
        size = _size(key, kept)
        if size > self._max_bytes:
            return
        self.by_query[key] = kept
        self._by_question[kept.key] = kept
        self._bytes += size
        while len(self.by_query) > self._max_answers or self._bytes > self._max_bytes:
            self._drop(next(iter(self.by_query)))

    def get(self, query: bytes, now: float) -> Kept | None:
        """The answer to exactly this query, fresh or stale."""
        key = query[2:]
        kept = self.by_query.get(key)
        if kept is not None and not self._is_usable(kept, now):
            self._drop(key)
            return None
        return kept

    def like(self, key: QuestionKey, now: float) -> Kept | None:
        """The latest answer to the same question in whatever bytes it was asked, fresh or stale."""
        kept = self._by_question.get(key)
        return kept if kept is not None and self._is_usable(kept, now) else None

    def _is_usable(self, kept: Kept, now: float) -> bool:
        return now < kept.kept_at + kept.keepable.fresh_s + self._stale_max_s

    def _drop(self, key: bytes) -> None:
        kept = self.by_query.pop(key, None)
        if kept is None:
            return
        self._bytes -= _size(key, kept)
        if self._by_question.get(kept.key) is kept:
            del self._by_question[kept.key]


def _size(key: bytes, kept: Kept) -> int:
    """Octets of memory: the answer and its rendering, and the objects around them (measured, rounded up)."""
    records = 120 * len(kept.keepable.ttls) + 150 * len(kept.addresses)
    return 700 + len(key) + 2 * len(kept.answer) + records
