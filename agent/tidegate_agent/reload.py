"""Another configuration in the place of the one in effect, without dropping a transfer (C1, N8).

Hosts that go are no longer steered at once; their connections end as they would have. Hosts that come are
steered when the trust store holds the certificate that was reissued for them and the probe has passed with
it; all others go on meanwhile. A file that is wrong, or that changes what only a start can change, is
refused, and nothing has happened then.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from tidegate_agent.clients import TrustedSince
from tidegate_agent.config import AgentConfig, RegistryConfig
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.credentials import login_of
from tidegate_agent.editions import Edition, Editions
from tidegate_agent.naming import Naming
from tidegate_agent.probe import Probe
from tidegate_agent.registries import registries_of
from tidegate_agent.status import ReloadStatus
from tidegate_agent.steering import SteeringFailed
from tidegate_agent.tags import tiers_of
from tidegate_core.errors import TidegateError, UsageError
from tidegate_proxy.interception.authority import Authority
from tidegate_proxy.interception.leaf import Leaves
from tidegate_proxy.registry.tag_tiers import TagTiers
from tidegate_proxy.site import Registries, Registry
from tidegate_proxy.upstreams.credentials import Credentials

RELOADED = frozenset({"default_registries", "registry", "dns.mode", "credential", "tags"})
TRUST_STEP = "sudo tidegate trust install"


def restart_keys(old: AgentConfig, new: AgentConfig) -> tuple[str, ...]:
    """The keys that differ and that only a start can change; pure."""
    return tuple(key for key in _different(old, new) if key not in RELOADED)


def _different(old: Any, new: Any, prefix: str = "") -> Iterator[str]:  # Any: one part, as a dataclass
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
            yield from _different(before, after, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


class Reloading:
    """The configuration in effect, and how another takes its place. Used on the event loop."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        source: ConfigSource,
        system: Path | None,
        machine_id: str,
        now: Callable[[], datetime],
        known: list[Registry],
        registries: Registries,
        naming: Naming,
        leaves: Leaves,
        probe: Probe,
        credentials: Credentials,
        tiers: TagTiers,
        trusted_since: TrustedSince,
        steered: Callable[[AgentConfig], None],
    ) -> None:
        """`known` are the configuration's registries; `steered` is told when what is steered has changed."""
        self._source = source
        self._system = system
        self._machine_id = machine_id
        self._now = now
        self._known = known
        self._registries = registries
        self._naming = naming
        self._leaves = leaves
        self._probe = probe
        self._credentials = credentials
        self._tiers = tiers
        self._trusted_since = trusted_since
        self._steered = steered
        self._editions = Editions((Edition.of(leaves.certificate_pem, config.host_patterns),))
        self._turn = asyncio.Lock()
        self.config = config
        """With all of its hosts."""
        self.in_effect = config
        """With those that are steered."""

    @property
    def waiting(self) -> tuple[str, ...]:
        """The hosts that the trust store's certificate does not cover, as far as is known."""
        return self._editions.waiting(self.config.host_patterns)

    async def reload(self) -> ReloadStatus:
        """Read the configuration again and follow it; raises TidegateError when the old one stays."""
        async with self._turn:
            new = await asyncio.to_thread(self._source.load)
            if keys := restart_keys(self.config, new):
                raise UsageError(
                    f"a reload cannot change {', '.join(keys)}",
                    next_step="sudo systemctl restart tidegate-agent, or take the change back",
                )
            known = await asyncio.to_thread(registries_of, new.registry, system=self._system)
            return await self._follow(new, known)

    async def _follow(self, new: AgentConfig, known: list[Registry]) -> ReloadStatus:
        old, old_known = self.config, self._known
        # What goes has to be gone before the certificate that does not cover it can be installed.
        self._steer(new, known, only=set(self.in_effect.host_patterns))
        try:
            authority = await asyncio.to_thread(
                Authority.load_or_create,
                new.authority_dir,
                hosts=new.host_patterns,
                machine_id=self._machine_id,
                now=self._now(),
            )
        except TidegateError:
            self._steer(old, old_known)
            raise
        if self._leaves.replace(authority):
            self._editions = self._editions.reissued(Edition.of(authority.certificate_pem, new.host_patterns))
            self._probe.expect(self._editions.certificates)
        self._steer(new, known)
        if new.credential != old.credential:
            await self._credentials.replace(map(login_of, new.credential))
        if new.tags != old.tags:
            self._tiers.replace(tiers_of(new.tags))
        try:
            await asyncio.to_thread(self._source.accept, new.runtime_dir)
        except OSError as error:
            cause = f"it cannot be written down: {error}"
            structlog.get_logger().warning("a crash would undo the reload", cause=cause)
        return self._told(old)

    def trust_store_holds(self, certificate_pem: bytes) -> None:
        """The probe has passed by this certificate: what waited for it is steered from now on."""
        editions = self._editions.installed(certificate_pem)
        held = editions.all[editions.certificates.index(certificate_pem)]
        self._trusted_since.holds(held.names, reissued=editions != self._editions)
        if editions != self._editions:
            waited = self.waiting
            self._editions = editions
            self._steer(self.config, self._known)
            arrived = [each for each in waited if each not in self.waiting]
            if arrived:
                structlog.get_logger().info("steering more hosts", hosts=arrived)

    def trust_store_fails(self) -> None:
        """It holds none of them."""
        self._trusted_since.lost()

    def _steer(self, config: AgentConfig, known: list[Registry], *, only: set[str] | None = None) -> None:
        """Steer the configuration's hosts that need not wait; of these, only those in `only`."""
        left_out = set(self._editions.waiting(config.host_patterns))
        if only is not None:
            left_out |= set(config.host_patterns) - only
        self.config, self._known = config, known
        self.in_effect = dataclasses.replace(config, registry=_without(config.registry, left_out))
        kept = (
            dataclasses.replace(
                registry, hosts=tuple(h for h in registry.hosts if h.partition(":")[0] not in left_out)
            )
            for registry in known
        )
        self._registries.replace(kept)
        try:
            self._naming.follow(self.in_effect)
        except SteeringFailed as error:  # it is tried again, and goes direct until then
            structlog.get_logger().error("steering failed", cause=error.cause)
        self._steered(self.in_effect)

    def _told(self, old: AgentConfig) -> ReloadStatus:
        before, after = set(_hosts(old)), set(_hosts(self.config))
        waiting = list(self.waiting)
        return ReloadStatus(
            added=sorted(after - before),
            removed=sorted(before - after),
            changed=sorted(_different(old, self.config)),
            waiting=waiting,
            next_step=TRUST_STEP if waiting else "",
        )


def _without(entries: tuple[RegistryConfig, ...], patterns: set[str]) -> tuple[RegistryConfig, ...]:
    kept = (
        dataclasses.replace(entry, hosts=tuple(h for h in entry.hosts if h.pattern not in patterns))
        for entry in entries
    )
    return tuple(entry for entry in kept if entry.hosts)


def _hosts(config: AgentConfig) -> Iterator[str]:
    return (str(host) for entry in config.registry for host in entry.hosts)
