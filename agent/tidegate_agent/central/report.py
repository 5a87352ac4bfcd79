"""The running central tier's state as values, derived from its parts whenever somebody asks."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate_agent import __version__
from tidegate_agent.activity import Activity
from tidegate_agent.central.config import CentralConfig
from tidegate_agent.central.status import CentralStatus, DoorStatus
from tidegate_agent.credentials import credentials_status
from tidegate_agent.metrics import Gauges
from tidegate_agent.status import CacheStatus
from tidegate_agent.tags import rate_limits_status
from tidegate_agent.upstreams import upstreams_status
from tidegate_proxy.central.accepting import Door
from tidegate_proxy.storage.usage import Usage
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.rate_limits import RateLimits
from tidegate_proxy.upstreams.tiers import Tiers


@dataclass(kw_only=True)
class CentralReport:
    """Reads the parts; changes none. No upstream has a say in whether it is ready (T10)."""

    config: CentralConfig
    names: tuple[str, ...]
    activity: Activity
    mirror: Door
    connect: Door
    upstreams: Tiers
    usage: Usage
    credentials: Credentials
    limits: RateLimits
    settle: Callable[[], None]
    """Makes `activity` count what was served up to now."""
    is_open: bool = False
    """Whether the doors accept."""
    started: float = field(default_factory=time.monotonic)

    @property
    def mirror_listens(self) -> list[str]:
        return [str(each) for each in self.config.mirror.listen]

    @property
    def connect_listens(self) -> list[str]:
        return [str(each) for each in self.config.connect.listen]

    def readiness(self) -> tuple[bool, str]:
        """Whether clients are served."""
        return (True, "serving") if self.is_open else (False, "starting or stopping")

    def gauges(self) -> Gauges:
        """What a scrape wants beside the counters."""
        return Gauges(
            steering_backend=None,
            steering_active=False,
            cache_bytes=self.usage.stored_bytes,
            cache_evicted_bytes=self.usage.evicted_bytes,
            upstream_up={(member.kind, member.url): not member.failing for member in self.upstreams.members},
            upstream_requests=self.upstreams.requests,
            ratelimit_remaining=self.limits.remaining(),
        )

    def status(self) -> CentralStatus:
        """What `tidegate status` prints."""
        self.settle()
        config = self.config
        return CentralStatus(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self.started, 3),
            hosts=list(config.host_patterns),
            mirror=DoorStatus(listen=self.mirror_listens, connections=self.mirror.connections),
            names=list(self.names),
            mutual_tls=config.mirror.client_ca is not None,
            connect=DoorStatus(listen=self.connect_listens, connections=self.connect.connections),
            others=config.connect.others,
            allow=[str(network) for network in config.access.allow],
            pushes=config.push.allow,
            cache=CacheStatus(
                hits=self.activity.hits.total(),
                misses=self.activity.misses.total(),
                stale=self.activity.stale.total(),
                bytes=self.usage.stored_bytes,
                blobs=self.usage.blobs,
                max_bytes=config.cache.max_size,
                evicted_bytes=self.usage.evicted_bytes,
                saved_bytes=self.activity.saved_bytes,
            ),
            upstreams=upstreams_status(self.upstreams),
            credentials=credentials_status(self.credentials),
            rate_limits=rate_limits_status(self.limits),
        )
