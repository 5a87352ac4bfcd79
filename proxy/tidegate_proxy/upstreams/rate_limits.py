"""What registries said of their rate limits last, for each name in which they are asked (FEATURES C19).

Whoever has something cached looks here before asking: a registry that said when to ask again is not asked
before, and the last part of a limit is left for what cannot be had otherwise. This module counts nothing by
itself, and delays nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tidegate_proxy.upstreams.rate_limit import RateLimit, rate_limit, retry_after_s

NOBODY, CLIENTS = "", "clients' own"
"""In whose name: a configured login's user name, nobody's, or clients' own logins."""

TOO_MANY = 429
_DEFAULT_RETRY_AFTER_S = 5.0
_RESERVED_SHARE = 0.05
_MAX_LIMITED = 256
_BELIEVED_FOR = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One name's limit at one registry; `not_before` is when it may be asked again, if it said so."""

    registry: str
    name: str
    limit: RateLimit | None
    seen_at: datetime
    not_before: datetime | None = None


class RateLimits:
    """The last word of each registry; `now` is aware."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._seen: dict[tuple[str, str], Seen] = {}

    def learn(self, registry: str, name: str, status: int, headers: Mapping[str, str]) -> None:
        """An answer came to a request in that name."""
        limit = rate_limit(headers)
        known = self._seen.get((registry, name))
        if limit is None and status != TOO_MANY:
            if known is not None and known.not_before is not None and status < 400:
                self._put(replace(known, not_before=None))
            return
        now = self._now()
        not_before = None
        if status == TOO_MANY:
            wait_s = retry_after_s(headers, now=now)
            not_before = now + timedelta(seconds=_DEFAULT_RETRY_AFTER_S if wait_s is None else wait_s)
        if limit is None and known is not None:
            limit = known.limit
        self._put(Seen(registry=registry, name=name, limit=limit, seen_at=now, not_before=not_before))

    def must_wait(self, registry: str, name: str) -> bool:
        """Whether the registry said when to ask again, and that is not yet."""
        seen = self._seen.get((registry, name))
        if seen is None or seen.not_before is None:
            return False
        # A clock that was stepped back must not keep us waiting for longer than was asked for.
        return seen.seen_at <= self._now() < seen.not_before

    def is_scarce(self, registry: str, name: str) -> bool:
        """Whether so little is left that only what cannot be had otherwise should be asked for."""
        seen = self._seen.get((registry, name))
        if seen is None or seen.limit is None:
            return False
        limit = seen.limit
        window = timedelta(seconds=limit.window_s) if limit.window_s is not None else _BELIEVED_FOR
        if not timedelta(0) <= self._now() - seen.seen_at < window:
            return False
        return limit.remaining <= (limit.limit or 0) * _RESERVED_SHARE

    def all(self) -> tuple[Seen, ...]:
        """Everything that is known, for status and metrics."""
        return tuple(self._seen.values())

    def remaining(self) -> dict[str, int]:
        """What is left at each registry, in the name that has the least."""
        least: dict[str, int] = {}
        for seen in self._seen.values():
            if seen.limit is not None:
                left = seen.limit.remaining
                least[seen.registry] = min(left, least.get(seen.registry, left))
        return least

    def _put(self, seen: Seen) -> None:
        key = (seen.registry, seen.name)
        self._seen.pop(key, None)
        if len(self._seen) >= _MAX_LIMITED:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = seen
