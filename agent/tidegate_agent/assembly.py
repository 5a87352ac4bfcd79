"""An agent from its configuration: the parts, made in the order in which they depend on each other."""

import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import structlog

from tidegate_agent.activity import Activity
from tidegate_agent.admin import Admin, Orders
from tidegate_agent.agent import Agent
from tidegate_agent.backend import choose, tell_of
from tidegate_agent.bypass import CAUSES, BypassWatch
from tidegate_agent.cache.api import cache_routes
from tidegate_agent.cache.operations import Operations
from tidegate_agent.clients import Clients, Everybody, ForwardedClients, TrustedSince
from tidegate_agent.clients.anchor_time import anchor_clock
from tidegate_agent.config import AgentConfig, tls_ports
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.credentials import login_of, open_credentials
from tidegate_agent.forwarding import Forwarding
from tidegate_agent.gate import FAILURES
from tidegate_agent.machine import machine_id, open_journal
from tidegate_agent.metrics import Metrics, RequestSeconds
from tidegate_agent.naming import Naming
from tidegate_agent.own_traffic import exemption
from tidegate_agent.pause import Pause
from tidegate_agent.probe import Probe
from tidegate_agent.registries import registries_of
from tidegate_agent.reload import Reloading
from tidegate_agent.report import Report
from tidegate_agent.request_log import RequestLog
from tidegate_agent.sockets import exempt_dialler, listen
from tidegate_agent.status import SteeringStatus
from tidegate_agent.steering import Keeper, NftSteering
from tidegate_agent.supervisor import Heartbeat
from tidegate_agent.tags import open_tiers
from tidegate_agent.trust import system_bundle
from tidegate_agent.upstreams import open_upstreams
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


async def open_agent(
    config: AgentConfig,
    source: ConfigSource,
    parts: AsyncExitStack,
    heartbeat: Heartbeat,
    keeper: Keeper | None,
) -> Agent:
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
    naming = Naming(config, steering=steering, registries=registries, activity=activity, lend=heartbeat.lend)
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
    agent = Agent(
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


def _now() -> datetime:
    return datetime.now(UTC)
