"""One resolver as it is known: what it said, and whether it is dark.

Dark means that its host refused a query, or that a steered name waited too long while nothing at all
was heard from it. Any answer ends that. A resolver that answers SERVFAIL is not dark.
"""

from dataclasses import dataclass

from tidegate_dns.address import IPAddress, LearnedAddress
from tidegate_dns.cache import STALE_TTL_S, Kept, Shelf
from tidegate_dns.limits import Limits
from tidegate_dns.message import Question
from tidegate_dns.policy import Lesson, question_key

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer of ours to a steered name, and what has to be learned before it leaves."""

    message: bytes
    addresses: tuple[LearnedAddress, ...]


class Resolver:
    """What one resolver said, and since when it says nothing."""

    def __init__(self, address: IPAddress, *, stale_max_s: float, limits: Limits) -> None:
        def shelf() -> Shelf:
            return Shelf(
                stale_max_s=stale_max_s,
                max_answers=limits.cached_answers_per_resolver,
                max_bytes=limits.cached_bytes_per_resolver,
            )

        self.address = address
        self.udp = shelf()
        self.tcp = shelf()
        self.is_dark = False
        self._heard_at = float("-inf")
        self._retry_after_s = _FIRST_RETRY_S

    def heard(self, now: float) -> None:
        """Any answer came."""
        self._heard_at = now
        self.is_dark = False
        self._retry_after_s = _FIRST_RETRY_S

    def refused(self) -> None:
        """Its host or network said no."""
        self.is_dark = True

    def kept_silent(self, since: float) -> None:
        """A query sent at `since` has no answer yet."""
        if self._heard_at < since:
            self.is_dark = True

    def next_retry_s(self) -> float:
        """How long to wait before a dark resolver is asked again: doubling, bounded."""
        wait = self._retry_after_s
        self._retry_after_s = min(2 * wait, _LAST_RETRY_S)
        return wait

    def keep(
        self, query: bytes, question: Question, answer: bytes, told: Lesson, now: float, *, udp: bool
    ) -> None:
        """Keep an answer to a steered name for replay, when it is of a kind that may be kept."""
        if told.keepable is None:
            return
        kept = Kept(
            qname=question.qname,
            answer=answer,
            keepable=told.keepable,
            addresses=told.addresses,
            kept_at=now,
            key=question_key(query, question),
        )
        (self.udp if udp else self.tcp).put(query, kept)

    def fresh(self, query: bytes, now: float, *, udp: bool) -> Told | None:
        """The answer to exactly this query while its time to live lasts."""
        kept = (self.udp if udp else self.tcp).get(query, now)
        if kept is None or not kept.is_fresh(now):
            return None
        addresses = kept.render(now)
        return Told(message=query[:2] + kept.rendered, addresses=addresses)

    def stale(self, query: bytes, question: Question, now: float, *, udp: bool) -> Told | None:
        """The last answer to this query, or else to its question, with TTLs of 30 if it is stale."""
        own, other = (self.udp, self.tcp) if udp else (self.tcp, self.udp)
        kept = own.get(query, now)
        if kept is not None:
            addresses = kept.render(now)
            return Told(message=query[:2] + kept.rendered, addresses=addresses)
        key = question_key(query, question)
        kept = own.like(key, now) or other.like(key, now)
        message = kept.stale_for(query, over_udp=udp) if kept is not None else None
        if kept is None or message is None:
            return None
        addresses = tuple(LearnedAddress(a.address, STALE_TTL_S + 1) for a in kept.addresses)
        return Told(message=message, addresses=addresses)
