"""The agent's process: parts from the configuration, one TaskGroup, signals, an orderly end.

This is the process that accepts connections. It renews the lease from the same loop, and its supervisor
kills it when that loop stops turning. On SIGTERM the redirection goes first, then the listeners, then what
is intercepted is waited for, at most 30 s. Connections that are spliced then still are others' and outlive
the agent: this process lets go of all it has but them, and lingers until the last one ends.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
import uvloop

from tidegate_agent.activity import Activity
from tidegate_agent.admin import Admin, Orders
from tidegate_agent.backend import choose, tell_of
from tidegate_agent.bypass import CAUSES, BypassWatch, Cause, Segment, why_bypassed
from tidegate_agent.cache.api import cache_routes
from tidegate_agent.cache.operations import Operations
from tidegate_agent.clients import Clients, Everybody, ForwardedClients, TrustedSince
from tidegate_agent.clients.anchor_time import anchor_clock
from tidegate_agent.config import AgentConfig, tls_ports
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.credentials import login_of, open_credentials
from tidegate_agent.forwarding import Forwarding
from tidegate_agent.gate import FAILURES, Gate, GateState
from tidegate_agent.machine import machine_id, open_journal
from tidegate_agent.metrics import Metrics, RequestSeconds
from tidegate_agent.naming import Naming
from tidegate_agent.own_traffic import exemption
from tidegate_agent.pause import Pause, PauseFile
from tidegate_agent.probe import Failure, Probe, ProbeFailed
from tidegate_agent.registries import registries_of
from tidegate_agent.reload import Reloading
from tidegate_agent.report import Report
from tidegate_agent.request_log import RequestLog
from tidegate_agent.sockets import exempt_dialler, listen
from tidegate_agent.status import ReloadStatus, SteeringStatus
from tidegate_agent.steering import Keeper, NftSteering, Steering, SteeringFailed
from tidegate_agent.supervisor import Heartbeat
from tidegate_agent.tags import open_tiers
from tidegate_agent.trust import system_bundle
from tidegate_agent.upstreams import open_upstreams
from tidegate_core import log as logging
from tidegate_core.errors import TidegateError
from tidegate_dns.lookup import NameNotFound, ResolverUnreachable
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.http.addressing import BySite
from tidegate_proxy.http.crash_journal import CrashJournal
from tidegate_proxy.http.http_server import HttpServer
from tidegate_proxy.http.served import Tally
from tidegate_proxy.interception.authority import PROBE_HOST, Authority
from tidegate_proxy.interception.interceptor import Arrival, Interceptor
from tidegate_proxy.interception.leaf import Leaves
from tidegate_proxy.operating.explaining import Failures
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries
from tidegate_proxy.upstreams.direct import NameResolver

DRAIN_S = 30.0
LOOKUPS_END_S = 2.0


def run(
    config: AgentConfig,
    source: ConfigSource,
    heartbeat: Heartbeat,
    keeper: Keeper | None,
    *,
    let_go: Callable[[], None],
) -> int:
    """The agent until it is told to stop; `let_go` is called when another may start. Raises StartRefused."""
    logging.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, source, heartbeat, keeper, let_go))
    return 0


async def _serve(
    config: AgentConfig,
    source: ConfigSource,
    heartbeat: Heartbeat,
    keeper: Keeper | None,
    let_go: Callable[[], None],
) -> None:
    stopping, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with AsyncExitStack() as parts:
        agent = await Agent.open(config, source, parts, heartbeat, keeper)

        async def leave() -> None:
            await parts.aclose()
            let_go()

        await agent.serve(stopping, hangup, leave)


class Agent:
    """What runs between start and stop. `open` makes the parts, in the order in which they depend."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        activity: Activity,
        steering: Steering,
        naming: Naming,
        http: HttpServer,
        interceptor: Interceptor,
        listeners: Sequence[socket.socket],
        heartbeat: Heartbeat,
        journal: CrashJournal,
        probe: Probe,
        forwarding: Forwarding | None,
        reloading: Reloading,
        watch: BypassWatch,
    ) -> None:
        self._log = structlog.get_logger()
        self._config = config
        self._activity = activity
        self._steering = steering
        self._naming = naming
        self._http = http
        self._interceptor = interceptor
        self._listeners = listeners
        self._heartbeat = heartbeat
        self._journal = journal
        self._pause_file = PauseFile(config.runtime_dir / "paused.json")
        self._withdrawn = False
        self._probe = probe
        self._forwarding = forwarding
        self._reloading = reloading
        self._watch = watch
        self._watched_ports = tls_ports(config.registry)
        self.gate = Gate(
            steering=steering,
            probe=self._come_through_the_probe,
            changed=self._gate_changed,
            now=_now,
            paused=self._pause_file.read(now=_now()),
            resumed=self._pause_file.remove,
            restore=self._restore_rules if config.steering.backend != "none" else _nothing,
            failed=activity.steering_failed,
        )

    @classmethod
    async def open(
        cls,
        config: AgentConfig,
        source: ConfigSource,
        parts: AsyncExitStack,
        heartbeat: Heartbeat,
        keeper: Keeper | None,
    ) -> "Agent":
        """Everything open and nothing steered yet; raises StartRefused."""
        activity = Activity()
        activity.bypassed.update(dict.fromkeys(CAUSES, 0))
        activity.steering_errors.update(dict.fromkeys(FAILURES, 0))
        known = registries_of(config.registry, system=system_bundle())
        registries = Registries(known)
        choice = choose(config, keeper)
        steering = choice.steering
        authority = Authority.load_or_create(
            config.authority_dir,
            hosts=config.host_patterns,
            machine_id=machine_id(),
            now=_now(),
        )
        leaves = Leaves(authority, clock=_now)
        naming = Naming(
            config, steering=steering, registries=registries, activity=activity, lend=heartbeat.lend
        )
        await naming.open(parts)
        upstreams = open_upstreams(
            config.upstream,
            parts,
            state_dir=config.state_dir,
            system=system_bundle(),
            resolver=NameResolver(naming.resolve, not_resolved=(NameNotFound, ResolverUnreachable)),
            exempt=steering.exempt,
            offline=naming.offline,
        )
        credentials = await open_credentials(map(login_of, config.credential))
        tiers = open_tiers(config.tags)
        failures = Failures()
        cache = await PullThroughCache.open(
            parts,
            state_dir=config.state_dir,
            durability=config.cache.durability,
            stale_max=config.cache.stale_max,
            limits=config.cache.limits,
            upstream=upstreams,
            fetch_ended=_each(activity.fetched, upstreams.fetched, failures.fetched),
            say=structlog.get_logger().warning,
            credentials=credentials,
            tiers=tiers,
            pushes=config.push.allow,
        )
        seconds = RequestSeconds()
        tally = Tally([activity.served, seconds.served, RequestLog().served])
        journal = CrashJournal(config.runtime_dir)
        http = HttpServer(
            service=cache.service,
            addressing=_addressing(registries),
            tally=tally,
            probe_host=PROBE_HOST,
            journal=journal,
        )
        parts.push_async_callback(http.close)
        trusted_since = TrustedSince(config.state_dir, anchor_clock(config.state_dir, system_bundle()))
        clients = Clients.open(
            parts, bundle=system_bundle(), trusted_since=trusted_since, dialled_for=steering.dialled_for
        )
        watch = BypassWatch(
            bypassed=activity.bypassed,
            steered=lambda host, port: registries.site(host, port) is not None,
            why=lambda segment, forwarded: agent.why_bypassed(segment, forwarded=forwarded),
            who=clients.who,
        )
        forwarding: Forwarding | None = None
        containers = ForwardedClients(has_login=_shared_logins(config, registries))
        everybody = Everybody(
            host=clients,
            forwarded=containers,
            is_forwarded=lambda address: forwarding is not None and forwarding.covers(address),
        )
        interceptor = Interceptor(
            original_dst=steering.original_dst,
            scheme_of=registries.scheme_of,
            plain_http_on=registries.plain_http_on,
            tls_context=leaves.context,
            http_protocol=http.protocol,
            dial=exempt_dialler(steering.exempt, naming.resolve),
            observe=activity.connection,
            withheld=watch.noted(everybody.withheld),
            why_splice=watch.noted(everybody.why_splice),
            handshake_failed=everybody.handshake_failed,
        )
        if config.steering.forwarded and isinstance(steering, NftSteering):
            forwarding = Forwarding(
                port=config.steering.port,
                steer=steering.steer_forwarded,
                listen_too=interceptor.listen_too,
                leave=interceptor.leave,
                resolvers=lambda: naming.resolvers,
                covers=naming.covers,
                learn=naming.addresses.learn,
            )
            parts.callback(forwarding.close)
        listeners = listen(config.steering.port)
        for listener in listeners:
            parts.callback(listener.close)
        parts.callback(steering.close)
        steering.open()
        naming.steer()
        if config.steering.backend != "none":
            parts.callback(watch.close)
            watch.open(
                exemption=exemption(config.steering.mark, uid=os.geteuid()), ports=tls_ports(config.registry)
            )
        probe = Probe(
            trust_bundle=system_bundle(),
            certificate_pem=authority.certificate_pem,
            ipv6=steering.probe6 if any(each.family == socket.AF_INET6 for each in listeners) else None,
        )
        reloading = Reloading(
            config,
            source=source,
            system=system_bundle(),
            machine_id=machine_id(),
            now=_now,
            known=known,
            registries=registries,
            naming=naming,
            leaves=leaves,
            probe=probe,
            credentials=credentials,
            tiers=tiers,
            trusted_since=trusted_since,
            steered=lambda config: agent.steers(config),  # noqa: PLW0108 (there is no agent yet)
        )
        agent = cls(
            config=config,
            activity=activity,
            steering=steering,
            naming=naming,
            http=http,
            interceptor=interceptor,
            listeners=listeners,
            heartbeat=heartbeat,
            journal=journal,
            forwarding=forwarding,
            probe=probe,
            reloading=reloading,
            watch=watch,
        )
        report = Report(
            reloading=reloading,
            activity=activity,
            steering=steering,
            gate=agent.gate,
            naming=naming,
            upstreams=upstreams,
            usage=cache.usage,
            clients=clients,
            credentials=credentials,
            limits=cache.rate_limits,
            watch=watch,
            forwarding=forwarding,
            containers=containers,
            settle=tally.tell,
        )
        metrics = Metrics(activity, seconds, report.gauges, settle=tally.tell)

        def pause(duration: timedelta | None) -> SteeringStatus:
            agent.pause(Pause.lasting(duration, now=_now()))
            return report.steering_status()

        async def resume() -> SteeringStatus:
            await agent.gate.resume()
            return report.steering_status()

        operations = Operations.of(
            config,
            cache=cache,
            registries=registries,
            upstreams=upstreams,
            tiers=tiers,
            credentials=credentials,
            failures=failures,
            steering=report.steering_status,
            served=lambda: report.status().cache,
        )
        admin = Admin(
            status=report.status,
            exposition=metrics.exposition,
            readiness=report.readiness,
            orders=Orders(pause=pause, resume=resume, reload=agent.reload),
            local_routes=cache_routes(operations),
        )
        parts.push_async_callback(admin.close)
        address = config.admin.listen
        await admin.open(socket_path=config.socket_path, host=str(address.address), port=address.port)
        open_journal(journal)
        tell_of(choice)
        return agent

    def pause(self, pause: Pause) -> None:
        """Stop steering at once and keep it so until the pause ends; what is in flight goes on."""
        self.gate.pause(pause)
        # Nobody comes back over a connection that is open between two requests.
        self._http.stop_keeping_alive()
        try:
            self._pause_file.write(pause)
        except OSError as error:
            self._log.warning("a crash would end the pause: it cannot be written down", cause=str(error))

    async def reload(self) -> ReloadStatus:
        """Follow the configuration as its file is now; raises TidegateError when the old one goes on."""
        try:
            done = await self._reloading.reload()
        except TidegateError as error:
            self._log.warning(
                "reload refused, the old configuration goes on",
                cause=error.cause,
                next_step=error.next_step,
            )
            raise
        self._log.info("reloaded", **msgspec.structs.asdict(done))
        self.gate.probe_soon()
        return done

    def steers(self, config: AgentConfig) -> None:
        """What is steered has changed: other ports are watched, maybe."""
        ports = tls_ports(config.registry)
        if config.steering.backend != "none" and ports != self._watched_ports:
            self._watched_ports = ports
            self._watch.close()
            self._watch.open(exemption=exemption(config.steering.mark, uid=os.geteuid()), ports=ports)

    async def _come_through_the_probe(self) -> None:
        try:
            await self._probe()
        except ProbeFailed as failed:
            if failed.of is Failure.TRUST:
                self._reloading.trust_store_fails()
            raise
        self._reloading.trust_store_holds(self._probe.held)

    def why_bypassed(self, segment: Segment, *, forwarded: bool) -> Cause:
        """Why no rule redirected a connection of now."""
        addresses, destination = self._naming.addresses, segment.destination
        if self._forwarding is not None and self._forwarding.steers(segment.source.address):
            forwarded = False
        return why_bypassed(
            paused=self.gate.paused is not None,
            steering=self._steering.active,
            known=addresses.knows(destination),
            steered_for_s=addresses.steered_for_s(destination),
            forwarded=forwarded,
        )

    async def serve(
        self, stopping: asyncio.Event, hangup: asyncio.Event, leave: Callable[[], Awaitable[None]]
    ) -> None:
        """Serve until told to stop, then end in order; `leave` closes every part that `open` made.

        `hangup` asks for a reload.
        """
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(self._beat(), name="lease and heartbeat")
            connections = tasks.create_task(self._interceptor.serve(self._listeners), name="accept")
            steering = [
                tasks.create_task(self.gate.run(), name="gate"),
                tasks.create_task(self._naming.run(), name="naming"),
                tasks.create_task(self._obey(hangup), name="reload"),
            ]
            if self._forwarding is not None:
                steering.append(tasks.create_task(self._forwarding.run(), name="containers"))
            await stopping.wait()
            for task in steering:
                task.cancel()
            await self._drain()
            if self._interceptor.splices:
                await self._linger(leave, connections, stopping, beating)
            beating.cancel()

    async def _linger(
        self,
        leave: Callable[[], Awaitable[None]],
        connections: asyncio.Task[None],
        stopping: asyncio.Event,
        beating: asyncio.Task[None],
    ) -> None:
        """Be nothing but the spliced connections, until they end, SIGTERM comes again or time is up."""
        linger = self._config.steering.linger
        self._log.info(
            "lingering for connections that were spliced",
            pid=os.getpid(),
            connections=self._interceptor.splices,
            at_most=str(linger),
            next_step=f"to cut them: kill {os.getpid()}",
        )
        stopping.clear()
        await leave()
        beating.cancel()
        self._heartbeat.linger()
        _detach()
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait(
            {connections, told}, timeout=linger.total_seconds(), return_when=asyncio.FIRST_COMPLETED
        )
        told.cancel()
        self._interceptor.cut()

    async def _obey(self, hangup: asyncio.Event) -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            with suppress(TidegateError):  # it was logged
                await self.reload()

    async def _drain(self) -> None:
        """The redirection first, then the listeners, then what is intercepted.

        The rules that let answers to look-ups out need no lease and stay until those on their way are sent.
        """
        self._log.info("stopping", drain_s=DRAIN_S)
        self._withdrawn = True
        with suppress(SteeringFailed):  # then it ends with the table
            self._steering.suspend()
        self._journal.close()  # what ends from here on was told to: no request is to blame
        self._pause_file.remove()
        self._interceptor.stop_accepting()
        self._http.stop_keeping_alive(for_good=True)
        await self._naming.settle(LOOKUPS_END_S)
        self._steering.withdraw()
        await self._interceptor.drain(DRAIN_S)

    async def _beat(self) -> None:
        """Renew the lease and tell the supervisor, from the loop that accepts, four times a lease or more."""
        pause_s = min(self._config.steering.lease.total_seconds() / 4, 0.5)
        while True:
            try:
                if not self._withdrawn:
                    self._steering.renew()
                    self._naming.tend()
                if self._probe.store_changed():
                    self.gate.probe_soon()
            except SteeringFailed as error:
                self._activity.steering_errors["renewal"] += 1
                self._log.error("steering failed", cause=error.cause)
                self.gate.probe_soon()
            self._heartbeat.beat()
            await asyncio.sleep(pause_s)

    def _restore_rules(self) -> None:
        """Put in anew what another program took away, all of it; raises StartRefused or SteeringFailed."""
        self._log.warning("the rules are gone: putting them in anew")
        self._steering.withdraw()
        self._steering.open()
        self._naming.steer()
        self._naming.addresses.restore()
        self._activity.steering_restored += 1

    def _gate_changed(self, state: GateState) -> None:
        """Told about the first verdict too: from then on the agent works, steering or not."""
        if state.open:
            self._log.info("steering", hosts=list(self._reloading.in_effect.host_patterns))
        else:
            self._log.warning("not steering", reason=state.reason, next_step=state.next_step)
        self._heartbeat.ready()


def _detach() -> None:
    """Let go of the standard streams: who waits for their end does not wait for the connections of others."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def _each(*observers: Callable[[FetchEnded], None]) -> Callable[[FetchEnded], None]:
    def ended(end: FetchEnded) -> None:
        for observer in observers:
            observer(end)

    return ended


def _shared_logins(config: AgentConfig, registries: Registries) -> Callable[[str, int], bool]:
    """Whether what this node's own login fetched from a registry is for all of the node."""
    shared = {login.registry for login in config.credential if login.share == "node"}

    def has_login(host: str, port: int) -> bool:
        site = registries.site(host, port)
        return site is not None and site.registry in shared

    return has_login


def _addressing(registries: Registries) -> Callable[[Arrival], BySite | None]:
    def of(arrival: Arrival) -> BySite | None:
        site = registries.site(arrival.sni, arrival.original.port)
        return BySite(site) if site is not None else None

    return of


def _nothing() -> None:
    """No rules, none to put in anew."""


def _now() -> datetime:
    return datetime.now(UTC)
