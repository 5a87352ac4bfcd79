"""The agent's name side: the responder, its own look-ups, and what both teach steering.

Follows the resolvers that the system uses; never chooses them.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress

import structlog

from tidegate_agent.activity import Activity
from tidegate_agent.addresses import SteeredAddresses
from tidegate_agent.config import AgentConfig
from tidegate_agent.names import keep_names_steered
from tidegate_agent.resolvers import ResolverWatch
from tidegate_agent.steering import Steering, SteeringFailed
from tidegate_dns.address import IPAddress, LearnedAddress
from tidegate_dns.lookup import Lookup, NameNotFound, ResolverUnreachable
from tidegate_dns.responder import Responder
from tidegate_dns.zone import Zone
from tidegate_proxy.site import Registries

_RESOLVER_POLL_S = 1.0
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
        self._zone = Zone.of(config.host_patterns)
        self._watch = ResolverWatch() if config.dns.resolvers == "system" else None
        self.resolvers = _first_resolvers(config, self._watch)
        stale_max_s = config.cache.stale_max.total_seconds()
        self.addresses = SteeredAddresses(
            steering=steering,
            ports=registries.ports,
            clock=time.monotonic,
            stale_max_s=stale_max_s,
            learned=activity.learned,
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
            self.resolvers,
            exempt=steering.exempt,
            clock=time.monotonic,
            answered=self._responder.remember,
        )

    @property
    def resolver_reachable(self) -> bool:
        """False while no resolver answers, neither the clients' queries nor our own."""
        return self._responder.resolver_reachable and self._lookup.resolver_reachable

    def offline(self) -> str:
        """Why no name resolves now; empty when names do."""
        return "" if self.resolver_reachable else "no resolver answers"

    async def open(self, parts: AsyncExitStack) -> None:
        """Listen for look-ups; raises StartRefused."""
        parts.push_async_callback(self._responder.close)
        await self._responder.open(self.resolvers)

    def steer(self) -> None:
        """Send the host's look-ups of steered names here; raises SteeringFailed."""
        self._lend(self._responder.udp_sockets)
        self._steering.steer_dns(self._responder.udp_ports, self._responder.tcp_port, self._zone)

    def tend(self) -> None:
        """Keep or forget steered addresses; raises SteeringFailed."""
        self.addresses.tend(resolver_reachable=self._responder.resolver_reachable)

    async def settle(self, timeout_s: float) -> None:
        """Wait until the look-ups that are on their way are answered, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._responder.is_awaited:  # noqa: ASYNC110 - at a stop only, and for a moment
                    await asyncio.sleep(_SETTLE_POLL_S)

    async def resolve(self, host: str) -> list[str]:
        """The addresses of a host, for connections of our own; raises OSError when there are none."""
        try:
            found = await self._lookup.addresses(host, last_resort=True)
        except (NameNotFound, ResolverUnreachable) as error:
            raise OSError(error.cause) from error  # what aiohttp expects of a resolver
        return [str(each.address) for each in found]

    async def run(self) -> None:
        """Keep the configured names steered and follow the system's resolvers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_resolvers(), name="follow resolvers")
            group.create_task(
                keep_names_steered(
                    sorted(self._zone.exact_names),
                    lookup=self._lookup,
                    learn=self.addresses.learn,
                    failed=self._name_failed,
                ),
                name="keep names steered",
            )

    async def _follow_resolvers(self) -> None:
        while self._watch is not None:
            await asyncio.sleep(_RESOLVER_POLL_S)
            found = self._watch.poll()
            if found is None:
                continue
            self.resolvers = found.addresses
            self._lookup.set_resolvers(self.resolvers)
            self._responder.set_resolvers(self.resolvers)
            try:
                self.steer()
            except SteeringFailed as error:
                self._activity.steering_errors["resolvers"] += 1
                self._log.error("steering failed", cause=error.cause)
            self._log.info("resolvers changed", resolvers=[str(each) for each in self.resolvers])

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


def _first_resolvers(config: AgentConfig, watch: ResolverWatch | None) -> tuple[IPAddress, ...]:
    if watch is not None:
        return watch.current.addresses
    assert config.dns.resolvers != "system"  # else there would be a watch
    return config.dns.resolvers
