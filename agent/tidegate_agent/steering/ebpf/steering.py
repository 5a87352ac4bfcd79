"""The eBPF back end: connections are redirected at connect(2), without NAT or connection tracking (DESIGN 4).

Programs at the cgroup of all processes change the destination of connections to steered endpoints; they and
their maps are descriptors of this process, so they are gone with it. A hung process keeps them, so each also
needs the lease, a time in a map that the accepting loop puts off. DNS over UDP stays with nft, whose table is
also what tells another agent that this host is taken.

Failure policy, as in `nft`: refuse to start when something cannot go in; once started, a change that the
kernel refuses raises SteeringFailed, and what was asked for goes direct.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from tidegate_agent.clients.sock_diag import SockDiag
from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.ebpf import records
from tidegate_agent.steering.ebpf.hooks import HOOKS, Hooks
from tidegate_agent.steering.ebpf.refusal import USE_NFT, missing_rights, refusal, root_cgroup
from tidegate_agent.steering.ebpf.syscall import BpfError, Map
from tidegate_agent.steering.eligibility import Routes
from tidegate_agent.steering.exemption import DEFAULT_MARK, Exemption
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.learned import Learned
from tidegate_agent.steering.nft import NftSteering
from tidegate_agent.steering.plan import DNS, HTTPS, PROBE6, PROBE_ADDRESS, unscoped
from tidegate_core.errors import StartRefused
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint, IPAddress

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_PROBE = Endpoint(PROBE_ADDRESS, HTTPS)
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class EbpfSteering:
    """Steers with cgroup hooks; redirected connections arrive at `port` of 127.0.0.1 and ::1."""

    backend = "ebpf"

    def __init__(
        self,
        *,
        port: int,
        keeper: Keeper | None = None,
        lease_s: float = 3.0,
        exemption: Exemption = DEFAULT_MARK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts CLOCK_MONOTONIC in seconds: the kernel compares times by it."""
        self._dns = NftSteering(
            port=port, keeper=keeper, lease_s=lease_s, exemption=exemption, connections=False, clock=clock
        )
        self._port = port
        self._lease_s = lease_s
        self._exemption = exemption
        self._clock = clock
        self._learned = Learned(clock=clock)
        self._resolvers: list[Endpoint] = []
        self._hooks: Hooks | None = None
        self._routes: Routes | None = None
        self._sockets: SockDiag | None = None
        self._opened = False
        self._withdrawn = False
        self._active = False

    @property
    def active(self) -> bool:
        """The lease is held: between `activate` and `suspend`."""
        return self._active

    @property
    def probe6(self) -> Endpoint | None:
        """Where the probe connects over IPv6."""
        return PROBE6

    def dry_run(self) -> str:
        """The programs that `open` would attach, and the table for DNS in nft syntax."""
        hooks = "\n".join(f"\t{hook.section} {hook.name}" for hook in HOOKS)
        return f"programs at {root_cgroup()}, by bpf(2) {{\n{hooks}\n}}\n{self._dns.dry_run()}"

    def open(self) -> None:
        """Attach the programs and put the table in; raises StartRefused with the cause and what to type."""
        if self._opened:
            raise StartRefused("steering is open already")
        lacking = missing_rights()
        cgroup = root_cgroup()
        try:
            self._hooks = self._hooks or Hooks()
            self._sockets = self._sockets or SockDiag()
            self._routes = self._routes or Routes()
            maps = self._hooks.maps
            maps["settings"].put(records.FIRST, self._settings())
            maps["lease"].put(records.FIRST, records.NO_LEASE)
            self._hooks.attach(cgroup)
            # After the links, and so below them: those go at once, a table takes milliseconds.
            self._dns.open()
            self._try(cgroup)
            for probe in (_PROBE, PROBE6):
                self._steer_always(probe, self._port)
        except OSError as error:
            self.close()
            raise refusal(error, lacking=lacking) from error
        except SteeringFailed as error:
            self.close()
            raise StartRefused(error.cause, next_step=USE_NFT) from error
        except BaseException:
            self.close()
            raise
        self._opened, self._withdrawn = True, False

    def activate(self) -> None:
        """Take the lease; raises SteeringFailed."""
        self._hold(self._lease_s)
        self._dns.activate()
        self._active = self._opened

    def renew(self) -> None:
        """Extend the lease while active; raises SteeringFailed."""
        if self._active:
            self._hold(self._lease_s)
            self._dns.renew()

    def suspend(self) -> None:
        """Give the lease up; raises SteeringFailed (the lease then ends by itself)."""
        self._active = False
        if self._opened:
            self._hold(0)
            self._dns.suspend()

    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None:
        """Steer each endpoint for so many seconds; raises SteeringFailed, and then none of these is added."""
        changes = self._learned.changes(learned, self._may_be_steered)
        if self._withdrawn or not changes:
            return
        for endpoint in changes.timed_out:
            self._delete(endpoint)
        try:
            for told in (changes.fresh, changes.renewed):
                for endpoint, timeout_s in told.items():
                    self._redirect(endpoint, self._port, until_ns=_ns(changes.now + timeout_s))
        except SteeringFailed:
            for endpoint in changes.fresh:
                self._delete(endpoint)
            raise
        self._learned.took(changes)

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Stop steering new connections to these; unknown ones are no error. Raises SteeringFailed."""
        known = self._learned.known(endpoints)
        for endpoint in known:
            self._delete(endpoint)
        self._learned.forget(known)

    def steer_dns(
        self,
        udp: Mapping[IPAddress, int],
        tcp_port: int,
        zone: Zone,
        *,
        linked: Sequence[Landing] = (),
        leaving: Sequence[Landing] = (),
    ) -> None:
        """Replace what is steered of DNS, over UDP in one transaction; raises SteeringFailed.

        Over TCP, queries to resolvers with link-local addresses go direct.
        """
        if self._withdrawn:
            return
        wanted = [Endpoint(unscoped(resolver), DNS) for resolver in udp] if tcp_port else []
        for endpoint in self._resolvers:
            if endpoint not in wanted:
                self._delete(endpoint)
        self._resolvers = wanted
        for endpoint in wanted:
            if endpoint.address == PROBE_ADDRESS:
                self._steer_always(endpoint, tcp_port)
            else:
                self._redirect(endpoint, tcp_port, until_ns=records.NEVER_ENDS)
        self._dns.steer_dns(udp, tcp_port, zone, linked=linked, leaving=leaving)

    def original_dst(self, sock: socket.socket) -> Endpoint | None:
        """Where an accepted connection was going; None when it was dialled directly, or is gone already."""
        if self._sockets is None or self._hooks is None:
            return None
        try:
            client = self._sockets.find(_endpoint(sock.getpeername()), _endpoint(sock.getsockname()))
            if client is None:
                return None
            found = self._hooks.maps["originals"].get(records.cookie(client.cookie))
        except OSError:
            return None
        return records.original(found) if found is not None else None

    def dialled_for(self, original: Endpoint) -> Endpoint:
        """The hook changes the destination before the socket has one: the agent's own port."""
        return Endpoint.of(_LOOPBACK[original.address.version], self._port)

    def exempt(self, sock: socket.socket) -> None:
        """Keep a socket of ours from being steered."""
        self._exemption.exempt(sock)

    def addresses(self) -> int:
        """How many endpoints are steered now."""
        return self._learned.count()

    def withdraw(self) -> None:
        """Detach the programs and delete the table at once; raises SteeringFailed.

        The maps stay: connections that were redirected may still wait to be accepted.
        """
        if self._opened and self._hooks is not None:
            self._hooks.detach()
            self._withdrawn = True
            for endpoint in (*self._learned.all(), *self._resolvers):
                self._delete(endpoint)
        self._opened = self._active = False
        self._resolvers = []
        self._learned.clear()
        self._dns.withdraw()

    def close(self) -> None:
        """Let go of everything."""
        for part in (self._hooks, self._routes, self._sockets, self._dns):
            if part is not None:
                part.close()
        self._hooks = self._routes = self._sockets = None
        self._opened = self._active = self._withdrawn = False
        self._resolvers = []
        self._learned.clear()

    def _try(self, cgroup: Path) -> None:
        """See a connection of our own redirected; raises StartRefused."""
        with socket.create_server((_LOOPBACK[4], 0)) as server, socket.socket() as client:
            self._steer_always(_PROBE, server.getsockname()[1])
            server.setblocking(False)
            try:
                client.connect((str(_PROBE.address), _PROBE.port))
                accepted, _ = server.accept()
            except (ConnectionError, BlockingIOError):
                raise StartRefused(
                    f"connections of this process are not seen by programs at {cgroup}",
                    next_step="Run it in a cgroup (version 2) below that one; see /proc/self/cgroup.",
                ) from None
            with accepted:
                if self.original_dst(accepted) != _PROBE:
                    raise StartRefused(
                        "this kernel does not tell sockets apart: sock_diag finds no TCP socket",
                        next_step="Load what is missing with: modprobe -a inet_diag tcp_diag",
                    )

    def _steer_always(self, endpoint: Endpoint, to_port: int) -> None:
        self._redirect(endpoint, to_port, until_ns=records.EVEN_WITHOUT_LEASE)

    def _settings(self) -> bytes:
        with socket.socket() as sock:
            packed = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        (netns_cookie,) = struct.unpack("=Q", packed)
        return records.settings(netns_cookie=netns_cookie, exemption=self._exemption)

    def _hold(self, seconds: float) -> None:
        until = records.time_ns(_ns(self._clock() + seconds)) if seconds else records.NO_LEASE
        self._put("lease", records.FIRST, until)

    def _redirect(self, endpoint: Endpoint, to_port: int, *, until_ns: int) -> None:
        value = records.redirect(until_ns=until_ns, to_port=to_port)
        self._put(_map_of(endpoint), records.endpoint(endpoint), value)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        try:
            self._map(name).put(key, value)
        except BpfError as error:
            raise SteeringFailed(f"the kernel refused {error}") from error

    def _delete(self, endpoint: Endpoint) -> None:
        try:
            self._map(_map_of(endpoint)).delete(records.endpoint(endpoint))
        except BpfError as error:
            raise SteeringFailed(f"the kernel refused {error}") from error

    def _map(self, name: str) -> Map:
        if self._hooks is None:
            raise SteeringFailed("steering is not open")
        return self._hooks.maps[name]

    def _may_be_steered(self, address: IPAddress) -> bool:
        if self._routes is None:
            raise SteeringFailed("steering is not open")
        return self._routes.admits(address)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _map_of(endpoint: Endpoint) -> str:
    return "steered4" if endpoint.address.version == 4 else "steered6"


def _endpoint(name: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    return Endpoint(_address(name[0]), name[1])


@lru_cache(maxsize=256)
def _address(text: str) -> IPAddress:
    # Nearly always the same two, and parsing them takes longer than asking the kernel.
    return unscoped(ip_address(text))
