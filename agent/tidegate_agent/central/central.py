"""The central tier's process: parts from the configuration, two doors, signals, an orderly end.

Nothing of the machine is changed. On SIGTERM the doors close first, then what is under way is waited for,
at most 30 s. Everything hangs off one `Central`: nothing is global, so several of them could be workers one
day.
"""

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
import uvloop

from tidegate_agent.activity import Activity
from tidegate_agent.admin import Admin
from tidegate_agent.central.config import CentralConfig
from tidegate_agent.central.names import Addresses, machine_names
from tidegate_agent.central.report import CentralReport
from tidegate_agent.credentials import login_of, open_credentials
from tidegate_agent.machine import machine_id, open_journal
from tidegate_agent.metrics import Metrics, RequestSeconds
from tidegate_agent.registries import registries_of
from tidegate_agent.request_log import RequestLog
from tidegate_agent.sockets import listen_on
from tidegate_agent.tags import open_tiers
from tidegate_agent.trust import system_bundle
from tidegate_agent.upstreams import open_upstreams
from tidegate_core import log as logging
from tidegate_core.errors import StartRefused
from tidegate_core.notify import Notifier
from tidegate_proxy.central import connect_front, mirror_door
from tidegate_proxy.central.accepting import Door
from tidegate_proxy.central.access import Access
from tidegate_proxy.central.connect_front import ConnectFront
from tidegate_proxy.central.mirror import Mirror
from tidegate_proxy.central.mirror_door import MirrorDoor
from tidegate_proxy.central.mirror_tls import ClientCa, GivenCertificate, OwnCertificate
from tidegate_proxy.central.namespace import ByNamespace
from tidegate_proxy.central.tunnel import Dial, dial, dial_through
from tidegate_proxy.central.via import Guarded, Marked
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.http.addressing import BySite
from tidegate_proxy.http.crash_journal import CrashJournal
from tidegate_proxy.http.http_server import HttpServer
from tidegate_proxy.http.served import Tally
from tidegate_proxy.interception.authority import PROBE_HOST, Authority
from tidegate_proxy.interception.interceptor import Arrival
from tidegate_proxy.interception.leaf import Leaves
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries
from tidegate_proxy.upstreams.credentials import Login
from tidegate_proxy.upstreams.direct import NameResolver

DRAIN_S = 30.0
_BEAT_S = 1.0
_SAID_AT_MOST = 256
OUTCOMES = tuple(dict.fromkeys((*connect_front.OUTCOMES, *mirror_door.OUTCOMES)))


def run(config: CentralConfig, logins: Iterable[Login], notifier: Notifier) -> int:
    """The tier until it is told to stop; raises StartRefused."""
    logging.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, logins, notifier))
    return 0


async def _serve(config: CentralConfig, logins: Iterable[Login], notifier: Notifier) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as parts:
        central = await Central.open(config, logins, parts)
        await central.serve(stopping, notifier)


@dataclass(kw_only=True)
class Central:
    """What runs between start and stop. `open` makes the parts, in the order in which they depend."""

    doors: tuple[Door, ...]
    servers: tuple[HttpServer, ...]
    journal: CrashJournal
    report: CentralReport

    @classmethod
    async def open(cls, config: CentralConfig, logins: Iterable[Login], parts: AsyncExitStack) -> "Central":
        """Everything open; raises StartRefused."""
        log = structlog.get_logger()
        activity = Activity()
        registries = Registries(registries_of(config.registry, system=system_bundle()))
        names = _names(config)
        authority = Authority.load_or_create(
            config.authority_dir, hosts=(*config.host_patterns, *names), machine_id=machine_id(), now=_now()
        )
        leaves = Leaves(authority, clock=_now)
        pseudonym = f"tidegate-{authority.certificate.serial_number:x}"[:24]
        addresses = Addresses(ipv6=config.ipv6)
        parts.callback(addresses.close)
        upstreams = open_upstreams(
            config.upstream,
            parts,
            state_dir=config.state_dir,
            system=system_bundle(),
            resolver=NameResolver(addresses.of),
            exempt=lambda _: None,
            offline=lambda _: "",
        )
        credentials = await open_credentials((*map(login_of, config.credential), *logins))

        def fetch_ended(ended: FetchEnded) -> None:
            activity.fetched(ended)
            upstreams.fetched(ended)

        cache = await PullThroughCache.open(
            parts,
            state_dir=config.state_dir,
            durability=config.cache.durability,
            stale_max=config.cache.stale_max,
            limits=config.cache.limits,
            upstream=Marked(upstreams, pseudonym),
            fetch_ended=fetch_ended,
            say=log.warning,
            credentials=credentials,
            tiers=open_tiers(config.tags),
            pushes=config.push.allow,
        )
        seconds = RequestSeconds()
        tally = Tally([activity.served, seconds.served, RequestLog().served])
        journal = CrashJournal(config.runtime_dir)
        service = Guarded(cache.service, pseudonym)
        by_namespace = ByNamespace(registries)
        connect_http = HttpServer(
            service=service,
            addressing=_by_sni(registries),
            tally=tally,
            probe_host=PROBE_HOST,
            journal=journal,
        )
        mirror_http = HttpServer(
            service=Mirror(service),
            addressing=lambda _: by_namespace,
            tally=tally,
            probe_host=PROBE_HOST,
            journal=journal,
        )
        for server in (connect_http, mirror_http):
            parts.push_async_callback(server.close)
        access = Access(config.access.allow)
        denied = _Once("a client is not in [access] allow")
        mirror = MirrorDoor(
            access=access,
            tls_context=_mirror_context(config, leaves, names),
            http_protocol=mirror_http.protocol,
            observe=activity.connection,
            denied=lambda peer: denied.say(client=str(peer.address)),
        )
        connect = ConnectFront(
            access=access,
            is_registry=_is_registry(registries),
            tunnels=config.connect.others == "tunnel",
            tls_context=leaves.context,
            http_protocol=connect_http.protocol,
            dial=_dialler(config, addresses),
            ca_pem=authority.certificate_pem,
            name=pseudonym,
            observe=activity.connection,
            denied=lambda peer: denied.say(client=str(peer.address)),
        )
        mirror_port = Door(handle=mirror.handle, observe=activity.connection)
        connect_port = Door(handle=connect.handle, observe=activity.connection)
        report = CentralReport(
            config=config,
            names=names if config.mirror.certificate is None else (),
            activity=activity,
            mirror=mirror_port,
            connect=connect_port,
            upstreams=upstreams,
            usage=cache.usage,
            credentials=credentials,
            limits=cache.rate_limits,
            settle=tally.tell,
        )
        metrics = Metrics(activity, seconds, report.gauges, settle=tally.tell, connection_outcomes=OUTCOMES)
        admin = Admin(status=report.status, exposition=metrics.exposition, readiness=report.readiness)
        parts.push_async_callback(admin.close)
        listeners = [
            _listen(parts, config.mirror.listen, "mirror"),
            _listen(parts, config.connect.listen, "connect"),
        ]
        listen = config.admin.listen
        await admin.open(socket_path=config.socket_path, host=str(listen.address), port=listen.port)
        open_journal(journal)
        for door, sockets in zip((mirror_port, connect_port), listeners, strict=True):
            door.open(sockets)
        return cls(
            doors=(mirror_port, connect_port),
            servers=(mirror_http, connect_http),
            journal=journal,
            report=report,
        )

    async def serve(self, stopping: asyncio.Event, notifier: Notifier) -> None:
        """Serve until told to stop, then end in order."""
        log = structlog.get_logger()
        log.info("serving", mirror=self.report.mirror_listens, connect=self.report.connect_listens)
        self.report.is_open = True
        notifier.ready()
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(_beat(notifier), name="watchdog")
            await stopping.wait()
            log.info("stopping", drain_s=DRAIN_S)
            self.report.is_open = False
            notifier.stopping()
            self.journal.close()  # what ends from here on was told to: no request is to blame
            for door in self.doors:
                door.stop_accepting()
            for server in self.servers:
                server.stop_keeping_alive()
            await asyncio.gather(*(door.drain(DRAIN_S) for door in self.doors))
            beating.cancel()


async def _beat(notifier: Notifier) -> None:
    while True:
        notifier.alive()
        await asyncio.sleep(_BEAT_S)


def _listen(parts: AsyncExitStack, places: Iterable[Endpoint], table: str) -> list[socket.socket]:
    listeners = listen_on(places, next_step=f"set [{table}] listen to a free address")
    for listener in listeners:
        parts.callback(listener.close)
    return listeners


def _names(config: CentralConfig) -> tuple[str, ...]:
    """What the mirror's own certificate is for; with one given, our authority vouches for none of them."""
    if config.mirror.certificate is not None:
        return ()
    return config.mirror.names or machine_names()


def _mirror_context(
    config: CentralConfig, leaves: Leaves, names: tuple[str, ...]
) -> Callable[[str | None], ssl.SSLContext]:
    mirror = config.mirror
    client_ca = ClientCa(mirror.client_ca) if mirror.client_ca is not None else None
    if mirror.certificate is not None and mirror.key is not None:
        stays = _Once("the mirror's new certificate cannot be used: the old one stays")
        given = GivenCertificate(
            mirror.certificate,
            mirror.key,
            client_ca=client_ca,
            complain=lambda cause: stays.say(cause=cause),
        )
        return given.context
    unknown = _Once("a client knows this tier by a name that its certificate has not")
    own = OwnCertificate(
        leaves,
        names=names,
        client_ca=client_ca,
        unknown=lambda name: unknown.say(name=name[:253], next_step="add it to names in [mirror]"),
    )
    try:
        own.context(None)
    except (OSError, ssl.SSLError) as error:
        raise StartRefused(
            f"[mirror] client_ca cannot be used: {error}", next_step=f"ls -l {mirror.client_ca}"
        ) from error
    return own.context


def _by_sni(registries: Registries) -> Callable[[Arrival], BySite | None]:
    def of(arrival: Arrival) -> BySite | None:
        site = registries.site(arrival.sni, arrival.original.port)
        return BySite(site) if site is not None else None

    return of


def _dialler(config: CentralConfig, addresses: Addresses) -> Dial:
    """How tunnels are dialled: by the CONNECT upstreams where going direct is denied, else directly."""
    parents = [each.url for each in config.upstream if each.kind == "connect" and each.url is not None]
    if parents and any(each.fallback == "deny" for each in config.upstream):
        return lambda to: dial_through(to, parents, resolve=addresses.of)
    return lambda to: dial(to, resolve=addresses.of)


def _is_registry(registries: Registries) -> Callable[[str, int], bool]:
    def claims(host: str, port: int) -> bool:
        site = registries.site(host, port)
        return site is not None and site.scheme == "https"

    return claims


class _Once:
    """Says something of the kind once for each of its facts, and not for ever more of them."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._said: set[tuple[str, ...]] = set()

    def say(self, **facts: str) -> None:
        key = tuple(facts.values())
        if key not in self._said and len(self._said) < _SAID_AT_MOST:
            self._said.add(key)
            structlog.get_logger().warning(self._event, **facts)


def _now() -> datetime:
    return datetime.now(UTC)
