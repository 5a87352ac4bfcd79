"""The running agent's state as values, derived from its parts whenever somebody asks."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate_agent import __version__
from tidegate_agent.activity import Activity
from tidegate_agent.bypass import BypassWatch
from tidegate_agent.clients import Clients, ForwardedClients, Reason
from tidegate_agent.config import AgentConfig
from tidegate_agent.credentials import credentials_status
from tidegate_agent.forwarding import Forwarding
from tidegate_agent.gate import Gate
from tidegate_agent.metrics import Gauges
from tidegate_agent.naming import Naming
from tidegate_agent.pause import written
from tidegate_agent.reload import TRUST_STEP, Reloading
from tidegate_agent.status import (
    BypassedConnection,
    BypassedStatus,
    CacheStatus,
    DnsStatus,
    SplicedClient,
    Status,
    SteeringStatus,
    TrustStatus,
    UnsteerableStatus,
)
from tidegate_agent.steering import Steering
from tidegate_agent.tags import rate_limits_status
from tidegate_agent.upstreams import upstreams_status
from tidegate_proxy.storage.usage import Usage
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.rate_limits import RateLimits
from tidegate_proxy.upstreams.tiers import Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Reads the parts; changes none."""

    reloading: Reloading
    activity: Activity
    steering: Steering
    gate: Gate
    naming: Naming
    upstreams: Tiers
    usage: Usage
    clients: Clients
    credentials: Credentials
    limits: RateLimits
    watch: BypassWatch
    forwarding: Forwarding | None
    containers: ForwardedClients
    settle: Callable[[], None]
    """Makes `activity` count what was served up to now."""
    started: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> AgentConfig:
        """What is in effect now."""
        return self.reloading.in_effect

    def gauges(self) -> Gauges:
        """What a scrape wants beside the counters."""
        return Gauges(
            steering_backend=self.steering.backend,
            steering_active=self.steering.active,
            probe_passes=self.gate.verdict.open,
            cache_bytes=self.usage.stored_bytes,
            cache_evicted_bytes=self.usage.evicted_bytes,
            upstream_up={(member.kind, member.url): not member.failing for member in self.upstreams.members},
            upstream_requests=self.upstreams.requests,
            ratelimit_remaining=self.limits.remaining(),
        )

    def status(self) -> Status:
        """What `tidegate status` prints."""
        self.settle()
        return Status(
            version=__version__,
            pid=os.getpid(),
            supervisor_pid=os.getppid(),
            uptime_s=round(time.monotonic() - self.started, 3),
            hosts=list(self.config.host_patterns),
            steering=self.steering_status(),
            dns=self._dns(),
            cache=self._cache(),
            upstreams=upstreams_status(self.upstreams),
            credentials=credentials_status(self.credentials),
            rate_limits=rate_limits_status(self.limits),
            trust=[self._system_store(), *self._runtimes()],
            clients_spliced=self._spliced(),
            hosts_waiting=list(self.reloading.waiting),
            bypassed=self._bypassed(),
            forwarded=self.forwarding.status() if self.forwarding is not None else [],
        )

    def readiness(self) -> tuple[bool, str]:
        """Whether registry connections are steered, and if not, why."""
        if self.steering.active:
            return True, "steering"
        return False, f"not steering: {self.gate.state.reason}"

    def steering_status(self) -> SteeringStatus:
        """What a pause and a resume are answered with, too."""
        paused = self.gate.paused
        until = paused.until if paused is not None else None
        return SteeringStatus(
            active=self.steering.active,
            backend=self.steering.backend,
            reason=self.gate.state.reason,
            paused=paused is not None,
            paused_until=None if until is None else written(until),
            lease_s=self.config.steering.lease.total_seconds(),
            addresses=self.steering.addresses(),
            failure=self.gate.verdict.failure,
            action=self.gate.state.next_step,
            restored=self.activity.steering_restored,
        )

    def _dns(self) -> DnsStatus:
        return DnsStatus(
            resolvers=[str(address) for address in self.naming.resolvers],
            mode=self.config.dns.mode,
            queries=self.activity.dns_queries_arrived,
            forwarded=self.activity.dns_queries["forwarded"],
            learned=self.activity.learned_addresses,
            resolver_reachable=self.naming.resolver_reachable,
            unsteerable=[
                UnsteerableStatus(what=found.what, why=found.why, next_step=found.next_step)
                for found in self.naming.unsteerable()
            ],
            sinkholes=list(self.config.sinkholed),
        )

    def _cache(self) -> CacheStatus:
        return CacheStatus(
            hits=self.activity.hits.total(),
            misses=self.activity.misses.total(),
            stale=self.activity.stale.total(),
            bytes=self.usage.stored_bytes,
            blobs=self.usage.blobs,
            max_bytes=self.config.cache.max_size,
            evicted_bytes=self.usage.evicted_bytes,
            saved_bytes=self.activity.saved_bytes,
        )

    def _bypassed(self) -> BypassedStatus:
        recent = [
            BypassedConnection(
                at=written(bypass.at),
                cause=bypass.cause,
                host=bypass.host,
                address=str(bypass.address),
                exe=bypass.exe,
                pid=bypass.pid,
            )
            for bypass in self.watch.recent
        ]
        return BypassedStatus(causes=dict(self.activity.bypassed), recent=recent, blind=self.watch.blind)

    def _system_store(self) -> TrustStatus:
        state = self.gate.verdict
        action = state.next_step or (TRUST_STEP if self.reloading.waiting else "")
        return TrustStatus(runtime="system store", pid=None, trusts=state.open, action=action)

    def _runtimes(self) -> list[TrustStatus]:
        return [
            TrustStatus(runtime=runtime.name, pid=runtime.pid, trusts=runtime.trusts, action=runtime.action)
            for runtime in self.clients.runtimes()
        ]

    def _spliced(self) -> list[SplicedClient]:
        return [
            SplicedClient(
                exe=client.exe,
                pid=client.process.pid,
                reason=client.reason.value,
                until=client.until.isoformat(timespec="seconds") if client.until else "restart",
            )
            for client in self.clients.spliced()
        ] + [
            SplicedClient(
                exe=f"a container at {address}",
                pid=0,
                reason=Reason.DISTRUSTED.value,
                until=until.isoformat(timespec="seconds"),
            )
            for address, until in self.containers.left_alone()
        ]
