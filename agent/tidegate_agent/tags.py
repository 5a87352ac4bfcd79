"""Tag tiers from the configuration to the proxy, and limits of registries from the proxy to status."""

import secrets
from collections.abc import Iterable

from tidegate_agent.config import TagTier
from tidegate_agent.pause import written
from tidegate_agent.status import RateLimitStatus
from tidegate_proxy.registry.tag_tiers import TagTiers, Tier
from tidegate_proxy.upstreams.rate_limits import RateLimits


def tiers_of(tags: Iterable[TagTier]) -> list[Tier]:
    """What `[[tags]]` says, in its order."""
    return [
        Tier(match=each.match, fresh_for=each.fresh_for, registry=each.registry, repository=each.repository)
        for each in tags
    ]


def open_tiers(tags: Iterable[TagTier]) -> TagTiers:
    """The same, with a salt of this process's own."""
    return TagTiers(tiers_of(tags), salt=secrets.token_hex(8))


def rate_limits_status(limits: RateLimits) -> list[RateLimitStatus]:
    """What registries said last, by registry and name."""
    return [
        RateLimitStatus(
            registry=seen.registry,
            name=seen.name,
            remaining=seen.limit.remaining if seen.limit is not None else None,
            limit=seen.limit.limit if seen.limit is not None else None,
            window_s=seen.limit.window_s if seen.limit is not None else None,
            seen_at=written(seen.seen_at),
            not_before=written(seen.not_before) if seen.not_before is not None else None,
        )
        for seen in sorted(limits.all(), key=lambda each: (each.registry, each.name))
    ]
