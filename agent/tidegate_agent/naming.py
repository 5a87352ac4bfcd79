"""The agent's name side: the responder, its own look-ups, and what both teach steering.

Follows the resolvers that the system uses and its hosts file; never chooses, never writes.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import structlog

from tidegate_agent.activity import Activity
from tidegate_agent.addresses import SteeredAddresses
from tidegate_agent.config import AgentConfig
from tidegate_agent.hosts import HostsFile
from tidegate_agent.names import keep_names_steered
from tidegate_agent.resolved import asked_without_dns, links_are_hidden, over_tls, resolved_servers
from tidegate_agent.resolvers import Resolvers, ResolverWatch
from tidegate_agent.sockets import has_ipv6_loopback
from tidegate_agent.steering import Steering, SteeringFailed
from tidegate_agent.steering.eligibility import SINKHOLE
from tidegate_agent.unsteerable import (
    Unsteerable,
    left_on_their_link,
    unseen_behind_resolved,
    unsteerable,
)
from tidegate_dns.address import IPAddress, LearnedAddress
from tidegate_dns.lookup import Lookup, NameNotFound, ResolverUnreachable
from tidegate_dns.responder import Responder
from tidegate_dns.zone import Zone, normal
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.site import Registries

_LOOK_EVERY_S = 1.0
_HOSTS_EVERY_S = 60.0
_HOSTS_TTL_S = 120
_SETTLE_POLL_S = 0.01


class Naming:
    """Answers the host's look-ups, makes the agent's own, and keeps registry addresses steered."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        steering: Steering,
        registries: Registries,
        activity: Activity,
        lend: Callable[[Sequence[socket.socket]], None],
    ) -> None:
        """`lend` is told the sockets at which the host's look-ups arrive."""
        self._log = structlog.get_logger()
        self._steering = steering
        self._activity = activity
        self._lend = lend
        self._registries = registries
        self._zone = _zone_of(config)
        self._zone_changed = asyncio.Event()
        self._watch = ResolverWatch() if config.dns.resolvers == "system" else None
        self._asked = _first_resolvers(config, self._watch)
        self._hosts = HostsFile()
        self._hosts_due = 0.0
        self._landings: object = None
        stale_max_s = config.cache.stale_max.total_seconds()
        self.addresses = SteeredAddresses(
            steering=steering,
            ports=registries.ports,
            clock=time.monotonic,
            stale_max_s=stale_max_s,
            learned=activity.learned,
            ipv6=has_ipv6_loopback(),
        )
        self._responder = Responder(
            zone=self._zone,
            learn=self._learn,
            exempt=steering.exempt,
            original_dst=self._original_resolver,
            stale_max_s=stale_max_s,
            clock=time.monotonic,
            observe=activity.dns_queries_ended,
        )
        self._lookup = Lookup(
            self._asked.addresses,
            over_tcp=self._asked.over_tcp,
            exempt=steering.exempt,
            clock=time.monotonic,
            answered=self._responder.remember,
        )

    @property
    def resolvers(self) -> tuple[IPAddress, ...]:
        """Whom the host's programs ask, in their order; then whom systemd-resolved asks for them."""
        return self._asked.steered

    @property
    def resolver_reachable(self) -> bool:
        """False while no resolver answers, neither the clients' queries nor our own."""
        return self._responder.resolver_reachable and self._lookup.resolver_reachable

    def offline(self, host: str) -> str:
        """Why a name does not resolve now that none does; empty when names do, or the hosts file has it."""
        if self.resolver_reachable or normal(host) in self._hosts.addresses:
            return ""
        return "no resolver answers"

    async def open(self, parts: AsyncExitStack) -> None:
        """Listen for look-ups; raises StartRefused."""
        parts.push_async_callback(self._responder.close)
        await self._responder.open(self._asked.steered)

    def steer(self) -> None:
        """Send the host's look-ups of steered names here; raises SteeringFailed."""
        responder, landings = self._responder, self._where_queries_land()
        self._lend(responder.udp_sockets)
        ports = {port for pattern in self._zone.sinkholes for port in self._registries.ports(pattern)}
        self.addresses.hold(Endpoint(SINKHOLE, port) for port in sorted(ports))
        self._steering.steer_dns(
            responder.udp_ports,
            responder.tcp_port,
            self._zone,
            linked=responder.linked,
            leaving=responder.leaving,
        )
        self._landings = landings
        self._hosts_due = 0.0  # other names may be steered now

    def follow(self, config: AgentConfig) -> None:
        """Steer this configuration's hosts from now on; raises SteeringFailed, and it is then tried again.

        Queries first: what nobody looks up here any more can be let go.
        """
        zone = _zone_of(config)
        self._responder.zone, changed = zone, zone != self._zone
        self._zone = zone
        if changed:
            self._zone_changed.set()
        self._hosts_due = 0.0
        self._landings = None
        self.steer()
        self.addresses.let_go()

    def tend(self) -> None:
        """Keep or forget steered addresses; raises SteeringFailed.

        A daemon on loopback answers at once that it could not ask: then our own look-ups tell.
        """
        self.addresses.tend(resolver_reachable=self.resolver_reachable)

    def unsteerable(self) -> tuple[Unsteerable, ...]:
        """What this host shows of look-ups and connections that cannot be steered."""
        links = [landing.resolver for landing in self._responder.linked]
        unseen = [*left_on_their_link(links, self._steering.backend)]
        if self._watch is not None and self._zone.wildcard_parents and asked_without_dns():
            unseen += unseen_behind_resolved(
                over_tls=over_tls(), servers=resolved_servers(), links_are_hidden=links_are_hidden()
            )
        return unsteerable(unserved=self._responder.unserved, hosts=self._steered_hosts(), unseen=unseen)

    async def settle(self, timeout_s: float) -> None:
        """Wait until the look-ups that are on their way are answered, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._responder.is_awaited:  # noqa: ASYNC110 - at a stop only, and for a moment
                    await asyncio.sleep(_SETTLE_POLL_S)

    async def resolve(self, host: str) -> list[str]:
        """The addresses of a host, for connections of our own; raises OSError when there are none.

        What the hosts file says comes first, as it does for the client on whose behalf this is asked.
        """
        listed = self._hosts.addresses.get(normal(host))
        if listed:
            return list(map(str, listed))
        try:
            found = await self._lookup.addresses(host, last_resort=True)
        except (NameNotFound, ResolverUnreachable) as error:
            raise OSError(error.cause) from error  # what aiohttp expects of a resolver
        return [str(each.address) for each in found]

    async def run(self) -> None:
        """Keep the configured names steered and follow the system's files, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_around(), name="follow resolvers and hosts file")
            group.create_task(self._keep_names_steered(), name="keep names steered")

    async def _keep_names_steered(self) -> None:
        while True:
            self._zone_changed.clear()
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(
                    keep_names_steered(
                        sorted(self._zone.exact_names - self._zone.sinkholes.keys()),
                        lookup=self._lookup,
                        learn=self.addresses.learn,
                        failed=self._name_failed,
                    )
                )
                await self._zone_changed.wait()
                keeping.cancel()

    async def _look_around(self) -> None:
        while True:
            try:
                self._steer_hosts()
                self._follow_resolvers()
            except SteeringFailed as error:
                self._activity.steering_errors["resolvers"] += 1
                self._log.error("steering failed", cause=error.cause)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _follow_resolvers(self) -> None:
        found = self._watch.poll() if self._watch is not None else None
        if found is not None:
            self._asked = found
            self._lookup.set_resolvers(found.addresses, over_tcp=found.over_tcp)
            self._log.info("resolvers changed", resolvers=[str(each) for each in self.resolvers])
        # Whatever the files say: this host's address on a link may be another one now.
        self._responder.set_resolvers(self._asked.steered)
        if self._where_queries_land() != self._landings:
            self.steer()

    def covers(self, name: str) -> bool:
        """Whether a look-up of this name is one of a registry."""
        return self._zone.covers(name)

    def _where_queries_land(self) -> object:
        return dict(self._responder.udp_ports), self._responder.linked, self._responder.leaving

    def _steer_hosts(self) -> None:
        changed, now = self._hosts.poll(), time.monotonic()
        if not changed and now < self._hosts_due:
            return
        self._hosts_due = now + _HOSTS_EVERY_S
        for name, addresses in self._steered_hosts().items():
            self.addresses.learn(name, [LearnedAddress(address, _HOSTS_TTL_S) for address in addresses])

    def _steered_hosts(self) -> Mapping[str, Sequence[IPAddress]]:
        return {name: found for name, found in self._hosts.addresses.items() if self._zone.covers(name)}

    def _learn(self, name: str, addresses: Sequence[LearnedAddress]) -> None:
        """The responder's side of learning, which knows OSError only."""
        try:
            self.addresses.learn(name, addresses)
        except SteeringFailed as error:
            self._activity.steering_errors["learn"] += 1
            raise OSError(error.cause) from error

    def _original_resolver(self, sock: socket.socket) -> tuple[IPAddress, int] | None:
        original = self._steering.original_dst(sock)
        return None if original is None else (original.address, original.port)

    def _name_failed(self, name: str, cause: str) -> None:
        self._log.warning("registry name not resolved, trying again", name=name, cause=cause)


def _zone_of(config: AgentConfig) -> Zone:
    """Names in sinkhole mode share one address: who connects says which of them is meant."""
    return Zone.of(config.host_patterns, dict.fromkeys(config.sinkholed, SINKHOLE))


def _first_resolvers(config: AgentConfig, watch: ResolverWatch | None) -> Resolvers:
    if watch is not None:
        return watch.current
    assert config.dns.resolvers != "system"  # else there would be a watch
    return Resolvers(addresses=config.dns.resolvers)
