"""What the operators' API can do, wired from the parts of a running agent."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tidegate_agent.config import AgentConfig
from tidegate_agent.pause import NEXT_STEP
from tidegate_agent.status import CacheStatus, SteeringStatus
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.platform import Platform
from tidegate_proxy.operating import listing
from tidegate_proxy.operating.explaining import Explaining, Failures, Steered
from tidegate_proxy.operating.forms import Images, Stats
from tidegate_proxy.operating.importing import Importing
from tidegate_proxy.operating.pulling import Pulling, Wanted
from tidegate_proxy.operating.purging import Purging
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.registry.tag_tiers import TagTiers
from tidegate_proxy.site import Registries
from tidegate_proxy.storage.tag_rows import TagRows
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.tiers import Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The cache as an operator uses it."""

    cache: PullThroughCache
    registries: Registries
    rows: TagRows
    purging: Purging
    explaining: Explaining
    pulling: Pulling
    importing: Importing
    served: Callable[[], CacheStatus]

    @classmethod
    def of(
        cls,
        config: AgentConfig,
        *,
        cache: PullThroughCache,
        registries: Registries,
        upstreams: Tiers,
        tiers: TagTiers,
        credentials: Credentials,
        failures: Failures,
        steering: Callable[[], SteeringStatus],
        served: Callable[[], CacheStatus],
    ) -> "Operations":
        rows = TagRows(config.state_dir / "index.sqlite")
        return cls(
            cache=cache,
            registries=registries,
            rows=rows,
            purging=Purging(cache=cache, rows=rows, registries=registries),
            explaining=Explaining(
                cache=cache,
                registries=registries,
                upstreams=upstreams,
                tiers=tiers,
                credentials=credentials,
                steered=lambda: _steered(steering()),
                failures=failures,
                stale_max=config.cache.stale_max,
                platform=Platform.of_machine(platform.machine()),
                now=_now,
            ),
            pulling=Pulling(service=cache.service, registries=registries, credentials=credentials),
            importing=Importing(
                cache=cache, registries=registries, limit_bytes=config.cache.max_size, now=_now
            ),
            served=served,
        )

    async def images(self, *, within: ImageName | None, untagged: bool, after: str, limit: int) -> Images:
        """A page of what is cached."""
        return await listing.images(
            store=self.cache.store,
            rows=self.rows,
            registries=self.registries,
            within=within,
            untagged=untagged,
            after=after,
            limit=limit,
        )

    async def stats(self) -> Stats:
        """The figures of the store."""
        await self.cache.index.catalogue.settled()
        served = self.served()
        return await listing.stats(
            store=self.cache.store,
            rows=self.rows,
            usage=self.cache.usage,
            max_bytes=served.max_bytes,
            served=(served.hits, served.misses, served.stale, served.saved_bytes),
        )

    def wanted(self, platforms: list[str], *, all_platforms: bool) -> Wanted:
        """Which platforms are meant; this machine's when none is told. Raises InvalidPlatform."""
        told = tuple(Platform.parse(text) for text in platforms)
        return Wanted(
            platforms=told or (Platform.of_machine(platform.machine()),), all_platforms=all_platforms
        )


def _steered(status: SteeringStatus) -> Steered:
    if status.active:
        return Steered(active=True)
    if status.backend == "none":
        reason = 'steering.backend is "none"'
        return Steered(
            active=False, reason=reason, next_step='set [steering] backend = "auto" and restart the agent'
        )
    if status.paused:
        return Steered(active=False, reason=status.reason, next_step=NEXT_STEP)
    reason = status.reason or "the agent does not steer"
    return Steered(active=False, reason=reason, next_step=status.action or "tidegate doctor")


def _now() -> datetime:
    return datetime.now(UTC)
