"""docker-registry-proxy's MANIFEST_CACHE_* variables as tag tiers (FEATURES C5, T1). Pure.

They count with ENABLE_MANIFEST_CACHE=true alone, and then have defaults of their own. A pattern there is for
the beginning of a tag, a time is nginx's (`60d`, `1h 30m`, seconds without a unit). An empty pattern leaves
its tier out.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta

from tidegate_agent.config import TagTier
from tidegate_core.errors import UsageError

SWITCH = "ENABLE_MANIFEST_CACHE"
_DEFAULTS = {
    "MANIFEST_CACHE_PRIMARY_REGEX": "(stable|nightly|production|test)",
    "MANIFEST_CACHE_PRIMARY_TIME": "10m",
    "MANIFEST_CACHE_SECONDARY_REGEX": r"(.*)(\d|\.)+(.*)(\d|\.)+(.*)(\d|\.)+",
    "MANIFEST_CACHE_SECONDARY_TIME": "60d",
    "MANIFEST_CACHE_DEFAULT_TIME": "1h",
}
VARIABLES = (SWITCH, *_DEFAULTS)

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "M": timedelta(days=30),
    "y": timedelta(days=365),
    "": timedelta(seconds=1),
}
_PART = re.compile(r"([0-9]{1,9})(ms|[smhdwMy]?)\s*", re.ASCII)


def tiers(environment: Mapping[str, str]) -> Iterator[TagTier]:
    """The tiers that an enabled manifest cache has, in its order; UsageError for a malformed variable."""
    said = {name: environment.get(name, default).strip() for name, default in _DEFAULTS.items()}
    for rank in ("PRIMARY", "SECONDARY"):
        pattern, time = (f"MANIFEST_CACHE_{rank}_{what}" for what in ("REGEX", "TIME"))
        if said[pattern]:
            yield TagTier(match=_from_the_start(pattern, said[pattern]), fresh_for=_time(time, said[time]))
    last = "MANIFEST_CACHE_DEFAULT_TIME"
    yield TagTier(match=".*", fresh_for=_time(last, said[last]))


def _from_the_start(name: str, pattern: str) -> str:
    whole = f"(?:{pattern}).*"
    try:
        re.compile(whole)
    except re.error as error:
        raise UsageError(
            f"environment variable {name} is no regular expression: {error}",
            next_step=f"write it as Python's re module reads it, such as {name}={_DEFAULTS[name]!r}",
        ) from error
    return whole


def _time(name: str, text: str) -> timedelta:
    total, at = timedelta(0), 0
    while part := _PART.match(text, at):
        total += int(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not text or at != len(text):
        raise UsageError(
            f"environment variable {name} is no time", next_step=f"write it as {name}={_DEFAULTS[name]}"
        )
    return total
