"""The agent's process: parts from the configuration, one TaskGroup, signals, an orderly end.

This is the process that accepts connections. It renews the lease from the same loop, and its supervisor
kills it when that loop stops turning. On SIGTERM the redirection goes first, then the listeners, then what
is in flight is waited for, at most 30 s.
"""

import asyncio
import errno
import os
import signal
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvloop

from tidegate_agent import __version__
from tidegate_agent.activity import Activity
from tidegate_agent.addresses import SteeredAddresses
from tidegate_agent.admin import Admin
from tidegate_agent.config import AgentConfig
from tidegate_agent.gate import Gate, GateState
from tidegate_agent.metrics import Gauges, Metrics
from tidegate_agent.names import keep_names_steered
from tidegate_agent.probe import PROBE_ADDRESS, probe
from tidegate_agent.resolvers import ResolverWatch
from tidegate_agent.status import CacheStatus, DnsStatus, Status, SteeringStatus, TrustStatus, UpstreamStatus
from tidegate_agent.steering import ByMark, NftSteering, NoSteering, Steering, SteeringFailed
from tidegate_agent.supervisor import Heartbeat
from tidegate_agent.trust import system_bundle
from tidegate_core import log as logging
from tidegate_core.errors import StartRefused
from tidegate_dns.address import IPAddress, LearnedAddress
from tidegate_dns.lookup import Lookup
from tidegate_dns.responder import Responder
from tidegate_dns.zone import Zone
from tidegate_proxy.authority import PROBE_HOST, Authority
from tidegate_proxy.direct import DirectUpstream, NameResolver
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.http_server import HttpServer, Served
from tidegate_proxy.interceptor import Arrival, Interceptor
from tidegate_proxy.leaf import Leaves
from tidegate_proxy.pull_through import PullThroughCache
from tidegate_proxy.site import Registries, Registry, Site

DRAIN_S = 30.0
_DIAL_TIMEOUT_S = 30.0
_BACKLOG = 1024
_RESOLVER_POLL_S = 1.0


def run(config: AgentConfig, heartbeat: Heartbeat) -> int:
    """The agent until it is told to stop; raises StartRefused."""
    logging.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Agent(config, heartbeat).run())
    return 0


class Agent:
    """The parts, in the order in which they depend on each other."""

    def __init__(self, config: AgentConfig, heartbeat: Heartbeat) -> None:
        self._config = config
        self._heartbeat = heartbeat
        self._log = structlog.get_logger()
        self._stopping = asyncio.Event()
        self._started = time.monotonic()
        self.activity = Activity()
        self.registries = Registries(
            Registry(
                name=entry.name, hosts=tuple(str(host) for host in entry.hosts), plain_http=entry.plain_http
            )
            for entry in config.registry
        )
        self.zone = Zone.of(config.host_patterns)
        self.steering: Steering = _steering(config)
        self.addresses = SteeredAddresses(
            steering=self.steering,
            ports=self.registries.ports,
            clock=time.monotonic,
            stale_max_s=config.cache.stale_max.total_seconds(),
            learned=self._count_learned,
        )

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._refuse_reload)
        async with AsyncExitStack() as parts:
            await self._open(parts)
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._beat(), name="lease and heartbeat"),
                    tasks.create_task(self.interceptor.serve(self._listeners), name="accept"),
                    tasks.create_task(self._follow_resolvers(), name="follow resolvers"),
                    tasks.create_task(self.gate.run(), name="gate"),
                    tasks.create_task(
                        keep_names_steered(
                            sorted(self.zone.exact_names),
                            lookup=self.lookup,
                            learn=self.addresses.learn,
                            failed=self._name_failed,
                        ),
                        name="names",
                    ),
                ]
                await self._stopping.wait()
                await self._stop()
                for task in running:
                    task.cancel()

    async def _open(self, parts: AsyncExitStack) -> None:
        config = self._config
        authority = Authority.load_or_create(
            config.authority_dir,
            hosts=config.host_patterns,
            machine_id=_machine_id(),
            now=datetime.now(UTC),
        )
        leaves = Leaves(authority, clock=lambda: datetime.now(UTC))
        exempt = self.steering.exempt
        self._watch, self.resolvers = _resolvers(config)
        self.responder = Responder(
            zone=self.zone,
            learn=self._learn,
            exempt=exempt,
            original_dst=self._original_resolver,
            stale_max_s=config.cache.stale_max.total_seconds(),
            clock=time.monotonic,
            observe=self.activity.dns_queries_ended,
        )
        parts.push_async_callback(self.responder.close)
        await self.responder.open(self.resolvers)
        self.lookup = Lookup(
            self.resolvers, exempt=exempt, clock=time.monotonic, answered=self.responder.remember
        )

        self.upstream = DirectUpstream(
            resolver=NameResolver(self._resolve),
            exempt=exempt,
            tls=_trusting(system_bundle()),
            offline=self._offline,
        )
        parts.push_async_callback(self.upstream.close)
        self.cache = await PullThroughCache.open(
            parts,
            state_dir=config.state_dir,
            durability=config.cache.durability,
            stale_max=config.cache.stale_max,
            upstream=self.upstream,
            fetch_ended=self.activity.fetched,
            say=self._log.warning,
        )
        self.http = HttpServer(
            service=self.cache.service, site_of=self._site_of, served=self._served, probe_host=PROBE_HOST
        )
        parts.push_async_callback(self.http.close)
        self.interceptor = Interceptor(
            original_dst=self.steering.original_dst,
            steered=self.registries.claims,
            tls_context=leaves.context,
            http_protocol=self.http.protocol,
            dial=self._dial,
            observe=self.activity.connection,
        )
        self._listeners = _listen(config.steering.port)
        for listener in self._listeners:
            parts.callback(listener.close)

        self.steering.open()
        parts.callback(self.steering.close)
        self._steer_dns()
        bundle = system_bundle()
        self.gate = Gate(
            steering=self.steering, probe=lambda: probe(trust_bundle=bundle), changed=self._gate_changed
        )
        self.metrics = Metrics(self.activity, self._gauges)
        self.admin = Admin(status=self._status, exposition=self.metrics.exposition)
        parts.push_async_callback(self.admin.close)
        listen = config.admin.listen
        await self.admin.open(socket_path=config.socket_path, host=str(listen.address), port=listen.port)

    async def _stop(self) -> None:
        """The redirection first, then the listeners, then what is in flight."""
        self._log.info("stopping", reason="told to stop", drain_s=DRAIN_S)
        self.steering.withdraw()
        self.interceptor.stop_accepting()
        self.http.stop_keeping_alive()
        await self.interceptor.drain(DRAIN_S)

    async def _beat(self) -> None:
        """Renew the lease and tell the supervisor, from the loop that accepts, four times a lease or more."""
        pause_s = min(self._config.steering.lease.total_seconds() / 4, 0.5)
        while True:
            try:
                self.steering.renew()
                self.addresses.tend(resolver_reachable=self.responder.resolver_reachable)
            except SteeringFailed as error:
                self.activity.steering_errors["renewal"] += 1
                self._log.error("steering failed", cause=error.cause)
            self._heartbeat.beat()
            await asyncio.sleep(pause_s)

    async def _follow_resolvers(self) -> None:
        """Steer the look-ups to whatever resolvers the system uses now."""
        if self._watch is None:
            return
        while True:
            await asyncio.sleep(_RESOLVER_POLL_S)
            found = self._watch.poll()
            if found is not None:
                self._use_resolvers(found.addresses)
                self._log.info("resolvers changed", resolvers=[str(each) for each in found.addresses])

    def _use_resolvers(self, resolvers: Sequence[IPAddress]) -> None:
        self.resolvers = tuple(resolvers)
        self.lookup.set_resolvers(self.resolvers)
        self.responder.set_resolvers(self.resolvers)
        self._steer_dns()

    def _steer_dns(self) -> None:
        self.steering.steer_dns(self.responder.udp_ports, self.responder.tcp_port)

    def _learn(self, name: str, addresses: Sequence[LearnedAddress]) -> None:
        try:
            self.addresses.learn(name, addresses)
        except SteeringFailed as error:
            self.activity.steering_errors["learn"] += 1
            raise OSError(error.cause) from error

    def _count_learned(self, addresses: int) -> None:
        self.activity.learned_addresses += addresses

    def _original_resolver(self, sock: socket.socket) -> tuple[IPAddress, int] | None:
        original = self.steering.original_dst(sock)
        return None if original is None else (original.address, original.port)

    def _offline(self) -> str:
        reachable = self.responder.resolver_reachable and self.lookup.resolver_reachable
        return "" if reachable else "no resolver answers"

    async def _resolve(self, host: str) -> list[str]:
        return [str(found.address) for found in await self.lookup.addresses(host)]

    async def _dial(self, endpoint: Endpoint) -> socket.socket:
        if str(endpoint.address) == PROBE_ADDRESS:
            # The probe's rule matches exempt sockets too: this would be dialling ourselves, for ever.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the probe's address leads nowhere else")
        family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.steering.exempt(sock)
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(sock, (str(endpoint.address), endpoint.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _site_of(self, arrival: Arrival) -> Site | None:
        return self.registries.site(arrival.sni, arrival.original.port)

    def _served(self, served: Served) -> None:
        self.activity.served(served)
        self.metrics.served(served)
        log = self._log.warning if served.cause is not None else self._log.info
        log(
            "served",
            registry=served.site.registry,
            method=served.method,
            path=served.path,
            status=served.status,
            cache=served.cache.value,
            bytes=served.sent_bytes,
            ms=round(served.seconds * 1000, 1),
            **({"cause": str(served.cause) or repr(served.cause)} if served.cause is not None else {}),
        )

    def _refuse_reload(self) -> None:
        self._log.warning(
            "SIGHUP changes nothing: reloading is not in this version yet", next_step="restart the agent"
        )

    def _name_failed(self, name: str, cause: str) -> None:
        self._log.warning("registry name not resolved, trying again", name=name, cause=cause)

    def _gate_changed(self, state: GateState) -> None:
        """Told about the first verdict too: from then on the agent works, steering or not."""
        if state.open:
            self._log.info("steering", hosts=list(self._config.host_patterns))
        else:
            self._log.warning("not steering", reason=state.reason, next_step=state.next_step)
        self._heartbeat.ready()

    def _gauges(self) -> Gauges:
        return Gauges(
            steering_backend=self.steering.backend,
            steering_active=self.steering.active,
            cache_bytes=self.cache.usage.stored_bytes,
            upstream_up=not self.upstream.failing,
        )

    def _status(self) -> Status:
        state, activity = self.gate.state, self.activity
        return Status(
            version=__version__,
            pid=os.getpid(),
            supervisor_pid=os.getppid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            hosts=list(self._config.host_patterns),
            steering=SteeringStatus(
                active=self.steering.active,
                backend=self.steering.backend,
                reason=state.reason,
                lease_s=self._config.steering.lease.total_seconds(),
                addresses=self.steering.addresses(),
            ),
            dns=DnsStatus(
                resolvers=[str(address) for address in self.resolvers],
                mode=self._config.dns.mode,
                queries=activity.dns_queries.total(),
                forwarded=activity.dns_queries["forwarded"],
                learned=activity.learned_addresses,
                resolver_reachable=self.responder.resolver_reachable,
            ),
            cache=CacheStatus(
                hits=activity.hits.total(),
                misses=activity.misses.total(),
                stale=activity.stale.total(),
                bytes=self.cache.usage.stored_bytes,
                blobs=self.cache.usage.blobs,
                max_bytes=self._config.cache.max_size,
                saved_bytes=activity.saved_bytes,
            ),
            upstreams=[
                UpstreamStatus(
                    kind=self.upstream.kind,
                    url="",
                    healthy=not self.upstream.failing,
                    reason=self.upstream.failing,
                )
            ],
            trust=[TrustStatus(runtime="system store", pid=None, trusts=state.open, action=state.next_step)],
            clients_spliced=[],
        )


def _steering(config: AgentConfig) -> Steering:
    if config.steering.backend == "none":
        return NoSteering()
    return NftSteering(
        port=config.steering.port,
        lease_s=config.steering.lease.total_seconds(),
        exemption=ByMark(value=config.steering.mark.value, mask=config.steering.mark.mask),
    )


def _resolvers(config: AgentConfig) -> tuple[ResolverWatch | None, tuple[IPAddress, ...]]:
    """Whom to ask at first, and who notices that the system asks others now."""
    if config.dns.resolvers != "system":
        return None, config.dns.resolvers
    watch = ResolverWatch()
    return watch, watch.current.addresses


def _listen(port: int) -> list[socket.socket]:
    """Redirected connections arrive on loopback, in both families; IPv6 may be absent."""
    listeners = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6:
                continue
            raise StartRefused(
                f"port {port} on {address} cannot be listened on: {error.strerror}",
                next_step="set [steering] port to a free one, or TIDEGATE_STEERING__PORT=18443",
            ) from error
        sock.listen(_BACKLOG)
        listeners.append(sock)
    return listeners


def _trusting(bundle: Path | None) -> ssl.SSLContext:
    """How registries are verified: against the system's trust store (DESIGN, section 6)."""
    return ssl.create_default_context(cafile=str(bundle) if bundle is not None else None)


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
