"""What the agent has done since it started, counted in one place: status and metrics are read from here.

Counters only: no clock, no I/O. Label values known beforehand start at 0, so that a rate exists before
the first event.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tidegate_dns.outcomes import ARRIVED as DNS_ARRIVED
from tidegate_dns.outcomes import OUTCOMES as DNS_OUTCOMES
from tidegate_proxy.fetching.origin import TROUBLES
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.http.crash_journal import CrashedTwice
from tidegate_proxy.http.served import Moment, Served
from tidegate_proxy.registry.answer import Cache, Kind

CONTENT_KINDS = (Kind.MANIFEST, Kind.BLOB)
BYPASS_CAUSES = ("crashed twice", "error", "not cacheable")
STEERING_ERRORS = ("learn", "renewal", "resolvers")
"""Beside `gate.FAILURES`."""


@dataclass(slots=True)
class Activity:
    """Totals since the start. Keys are label values."""

    requests: Counter[Kind] = field(default_factory=Counter)
    hits: Counter[Kind] = field(default_factory=Counter)
    misses: Counter[Kind] = field(default_factory=Counter)
    stale: Counter[Kind] = field(default_factory=Counter)
    pulled_bytes: Counter[Kind] = field(default_factory=Counter)
    pushed_bytes: Counter[Kind] = field(default_factory=Counter)
    saved_bytes: int = 0
    healed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TROUBLES, 0)))
    """What fetches got over without a client noticing."""
    bypassed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(BYPASS_CAUSES, 0)))
    connections: Counter[tuple[str, str]] = field(default_factory=Counter)
    dns_queries: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DNS_OUTCOMES, 0)))
    steering_errors: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STEERING_ERRORS, 0)))
    learned_addresses: int = 0
    steering_restored: int = 0
    """How often the rules were found gone and put in anew."""

    def connection(self, outcome: str, reason: str) -> None:
        """An accepted connection was intercepted, spliced or refused, and why."""
        self.connections[(outcome, reason)] += 1

    def steering_failed(self, cause: str) -> None:
        """A change that the kernel refused, or a probe that failed."""
        self.steering_errors[cause] += 1

    def learned(self, addresses: int) -> None:
        """Addresses were handed to steering."""
        self.learned_addresses += addresses

    def dns_queries_ended(self, outcome: str, count: int) -> None:
        """Queries were answered, forwarded, answered stale ...: one of the responder's `OUTCOMES`."""
        self.dns_queries[outcome] += count

    @property
    def dns_queries_arrived(self) -> int:
        """How many queries there were, each once."""
        return sum(self.dns_queries[outcome] for outcome in DNS_ARRIVED)

    def fetched(self, ended: FetchEnded) -> None:
        """A blob was fetched, or not to its end."""
        self.pulled_bytes[Kind.BLOB] += ended.received_bytes
        self.healed.update(ended.healed)

    def served(self, moments: Sequence[Moment]) -> None:
        """Requests were answered."""
        for served, times in Counter(served for served, _, _ in moments).items():
            self._count(served, times)

    def _count(self, served: Served, times: int) -> None:
        if isinstance(served.cause, CrashedTwice):
            self.bypassed["crashed twice"] += times
        elif served.cache is Cache.BYPASS and served.cause is not None:
            self.bypassed["error"] += times
        elif served.cache is Cache.BYPASS and served.kind in CONTENT_KINDS:
            self.bypassed["not cacheable"] += times
        if served.kind not in CONTENT_KINDS:
            return
        kind, sent_bytes = served.kind, times * served.sent_bytes
        self.requests[kind] += times
        self.pushed_bytes[kind] += sent_bytes
        match served.cache:
            case Cache.HIT | Cache.REVALIDATED:
                self.hits[kind] += times
                self.saved_bytes += sent_bytes
            case Cache.STALE:
                self.hits[kind] += times
                self.stale[kind] += times
                self.saved_bytes += sent_bytes
            case Cache.MISS:
                self.misses[kind] += times
            case Cache.BYPASS:
                return
