"""How long a tag is served without asking its registry (FEATURES C5): tiers by pattern, the first match wins.

A tag that matches none is asked for at every use. Pure, but for the salt by which two caches that learned of
a tag at the same moment do not ask for it again at the same moment.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import translate
from functools import lru_cache
from zlib import crc32

_SPREAD = 0.1
_ASKED_EACH_TIME = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """`match` is a regular expression for the whole tag; empty `registry` and `repository` mean any.

    `repository` may hold `*` (which goes across slashes), `?` and `[...]`.
    """

    match: str
    fresh_for: timedelta
    registry: str = ""
    repository: str = ""


class TagTiers:
    """The tiers in their order; `salt` is any text that another cache does not have."""

    def __init__(self, tiers: Iterable[Tier] = (), *, salt: str = "") -> None:
        self._salt = salt
        self.replace(tiers)

    def replace(self, tiers: Iterable[Tier]) -> None:
        """From now on these; the patterns were checked before."""
        compiled = [
            (each, re.compile(each.match), re.compile(translate(each.repository or "*"))) for each in tiers
        ]

        # A pattern of the operator's may be slow, and the same few tags are asked for again and again.
        @lru_cache(maxsize=4096)
        def fresh_for(registry: str, repository: str, tag: str) -> timedelta:
            for tier, match, repositories in compiled:
                if tier.registry not in ("", registry) or not repositories.match(repository):
                    continue
                if match.fullmatch(tag):
                    return tier.fresh_for
            return _ASKED_EACH_TIME

        self.fresh_for = fresh_for
        """How long that tag is believed."""

    def believes(
        self, registry: str, repository: str, tag: str, *, checked_at: datetime, now: datetime
    ) -> bool:
        """Whether what was learned of the tag then need not be asked for now.

        Up to a tenth of the time is taken off, differently for each tag and cache. What was learned in the
        future is not believed: the clock was stepped.
        """
        fresh_for = self.fresh_for(registry, repository, tag)
        if not fresh_for:
            return False
        drawn = crc32(f"{self._salt} {registry} {repository} {tag} {checked_at.timestamp()}".encode())
        return timedelta(0) <= now - checked_at < fresh_for * (1 - _SPREAD * drawn / 2**32)
