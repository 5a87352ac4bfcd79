"""What an answer says of rate limits: how much is left, and when to ask again. Pure.

Understood are Docker Hub's fields (`ratelimit-remaining: 76;w=21600`), those of the drafts of
draft-ietf-httpapi-ratelimit-headers (`RateLimit-Remaining: 76`, `RateLimit: "default";r=76;t=30` with
`RateLimit-Policy: "default";q=100;w=60`), and Retry-After (RFC 9110, 10.2.3). What is malformed is as if it
were not there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER_S = 24 * 3600.0
"""No answer keeps us from asking for longer."""

_NUMBER = re.compile(r"\s*([0-9]{1,12})\s*(?:;|,|$)", re.ASCII)
_PARAMETER = re.compile(r";\s*([a-z]+)\s*=\s*\"?([0-9]{1,12})\"?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How many requests are left of how many, in a window of how many seconds; None is not told."""

    remaining: int
    limit: int | None = None
    window_s: int | None = None


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """The limit that an answer tells; None when it tells none. `headers` compare without regard to case."""
    remaining = headers.get("RateLimit-Remaining")
    if remaining is not None and (left := _number(remaining)) is not None:
        total = headers.get("RateLimit-Limit", "")
        window = _parameters(remaining).get("w", _parameters(total).get("w"))
        return RateLimit(remaining=left, limit=_number(total), window_s=window)
    left = _parameters(headers.get("RateLimit", "")).get("r")
    if left is None:
        return None
    policy = _parameters(headers.get("RateLimit-Policy", ""))
    return RateLimit(remaining=left, limit=policy.get("q"), window_s=policy.get("w"))


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds to wait before asking again, at most LONGEST_RETRY_AFTER_S; None when the answer names none."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text) if len(text) <= 9 else LONGEST_RETRY_AFTER_S
    else:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now) / timedelta(seconds=1)
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _number(text: str) -> int | None:
    found = _NUMBER.match(text)
    return int(found[1]) if found else None


def _parameters(text: str) -> dict[str, int]:
    """The numeric parameters of the first item."""
    return {name.lower(): int(value) for name, value in _PARAMETER.findall(text.partition(",")[0])}
