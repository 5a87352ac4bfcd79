"""The responder: the ports of this host to which the kernel sends its DNS queries.

It wires resolvers, UDP ports and the TCP listener together and follows the list of resolvers. It never
edits resolv.conf, never chooses a resolver on its own, and answers by itself only the probe name, warm
steered names, and steered names whose resolver is silent.
"""

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

from tidegate_core.errors import StartRefused
from tidegate_dns.address import (
    DNS_PORT,
    Exempt,
    IPAddress,
    Landing,
    LearnedAddress,
    family_of,
    is_on_a_link,
    landing_address,
    socket_address,
)
from tidegate_dns.forwarder import Budget, Forwarder
from tidegate_dns.limits import Limits
from tidegate_dns.message import Question, parse_question
from tidegate_dns.outcomes import OUTCOMES, Observe
from tidegate_dns.policy import PROBE_ADDRESS, answers, lesson
from tidegate_dns.reply import udp_size
from tidegate_dns.resolver import Resolver
from tidegate_dns.tcp import TcpConversation
from tidegate_dns.udp import UdpPort
from tidegate_dns.zone import Zone

Learn = Callable[[str, Sequence[LearnedAddress]], None]
"""Puts the addresses of a name into the steering set before it returns; OSError when it cannot."""

OriginalDestination = Callable[[socket.socket], tuple[IPAddress, int] | None]
"""Where an accepted connection was going before the kernel redirected it."""

_OLD_PORTS_ANSWER_S = 5.0
_OLD_PORTS_STAY_S = 8.0
_ACCEPTS_PER_WAKE = 16
_BACKLOG = 128
_REST_S = 0.5
_LOOPBACK4 = ip_address("127.0.0.1")
_LOOPBACK6 = ip_address("::1")


class Responder:
    """Answers this host's queries in the place of its resolvers; every method runs on the event loop."""

    def __init__(
        self,
        *,
        zone: Zone,
        learn: Learn,
        exempt: Exempt,
        original_dst: OriginalDestination,
        stale_max_s: float,
        clock: Callable[[], float],
        observe: Observe,
        limits: Limits | None = None,
        resolver_port: int = DNS_PORT,
        new_id: Callable[[], int] = lambda: secrets.randbelow(0x10000),
    ) -> None:
        """`clock` is in seconds and never goes back; `observe` takes one of `OUTCOMES` and a count."""
        self.zone = zone
        """May be replaced while running: names are looked up in it per query."""
        self.tcp_port = 0
        self._learn = learn
        self._exempt = exempt
        self._original_dst = original_dst
        self._stale_max_s = stale_max_s
        self._clock = clock
        self._observe = observe
        self._limits = limits or Limits()
        self._resolver_port = resolver_port
        self._new_id = new_id
        self._budget = Budget(self._limits.flights, self._limits.flight_bytes)
        self._resolvers: dict[IPAddress, Resolver] = {}
        self._ports: dict[IPAddress, UdpPort] = {}
        self._leaving: dict[UdpPort, tuple[asyncio.TimerHandle, float]] = {}
        self._unserved: dict[IPAddress, str] = {}
        self._listeners: list[socket.socket] = []
        self._link_listeners: dict[UdpPort, socket.socket] = {}
        self._conversations: dict[asyncio.Task[None], TcpConversation] = {}

    @property
    def udp_ports(self) -> Mapping[IPAddress, int]:
        """Resolver -> local UDP port (127.0.0.1 or ::1), the probe's pseudo resolver included."""
        return {a: port.port for a, port in self._ports.items() if port not in self._link_listeners}

    @property
    def linked(self) -> tuple[Landing, ...]:
        """Where the queries to IPv6 link-local resolvers arrive."""
        return tuple(self._landing(port) for port in self._ports.values() if port in self._link_listeners)

    @property
    def leaving(self) -> tuple[Landing, ...]:
        """Where queries to former resolvers arrived: their answers may still be on their way."""
        now = self._clock()
        return tuple(self._landing(port) for port, (_, until) in self._leaving.items() if now < until)

    @property
    def unserved(self) -> Mapping[IPAddress, str]:
        """The resolvers whose queries go direct, and why."""
        return self._unserved

    @property
    def udp_sockets(self) -> tuple[socket.socket, ...]:
        """The sockets behind `udp_ports`."""
        return tuple(port.sock for port in self._ports.values())

    @property
    def resolver_reachable(self) -> bool:
        """False while every resolver is dark; true again with the first answer of any."""
        known = [port.resolver for port in self._ports.values() if port.forwarder is not None]
        return not known or not all(resolver.is_dark for resolver in known)

    @property
    def is_awaited(self) -> bool:
        """Whether a client waits for an answer over UDP that is on its way."""
        forwarders = (port.forwarder for port in (*self._ports.values(), *self._leaving))
        return any(forwarder is not None and forwarder.is_awaited for forwarder in forwarders)

    async def open(self, resolvers: Sequence[IPAddress]) -> None:
        """Listen for queries to these resolvers; raises StartRefused when loopback cannot be bound."""
        self._listeners, self.tcp_port = _listen()
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.add_reader(listener, self._accept, listener)
        self.set_resolvers(resolvers)

    def set_resolvers(self, resolvers: Sequence[IPAddress]) -> Mapping[IPAddress, int]:
        """Serve exactly these resolvers and the probe's; ports of those that stay do not change.

        Left out, so that its queries go direct, is a resolver whose family this host's loopback lacks, and
        a link-local one on whose link this host has no address. Where that address has changed, its port
        is a new one. Ports no longer wanted stay a few seconds, for the answers on their way and until the
        kernel's rules have followed.
        """
        listed = list(dict.fromkeys([PROBE_ADDRESS, *resolvers]))
        wanted = listed[: self._limits.resolvers + 1]
        self._unserved = dict.fromkeys(
            listed[len(wanted) :], f"only {self._limits.resolvers} resolvers are steered"
        )
        loop = asyncio.get_running_loop()
        for address in [known for known in self._ports if known not in wanted or self._has_moved(known)]:
            port = self._ports.pop(address)
            timer = loop.call_later(_OLD_PORTS_STAY_S, self._leave, port)
            self._leaving[port] = timer, self._clock() + _OLD_PORTS_ANSWER_S
        for address in wanted:
            if address in self._ports:
                continue
            try:
                self._ports[address] = self._open_port(address)
            except OSError as error:
                self._unserved[address] = error.strerror or str(error)
        return self.udp_ports

    def remember(self, resolver: IPAddress, query: bytes, answer: bytes) -> None:
        """Keep what the agent's own look-up was told, so that it can be told while the resolver is dark."""
        read = parse_question(query)
        if read is None or not answers(query, answer) or not self.zone.covers(read[0].qname):
            return
        known = self._resolver(resolver)
        now = self._clock()
        known.heard(now)
        # What no datagram of theirs may hold came over TCP.
        fits = len(answer) <= udp_size(query)
        known.keep(query, read[0], answer, lesson(answer), now, udp=fits)

    async def close(self) -> None:
        """Close every port and connection; clients that wait get no answer and ask again."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for leaving in list(self._leaving):
            self._leave(leaving)
        for port in self._ports.values():
            self._close_port(port)
        self._ports.clear()
        tasks = list(self._conversations)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open_port(self, address: IPAddress) -> UdpPort:
        resolver = self._resolver(address)
        port = UdpPort(
            resolver,
            zone=lambda: self.zone,
            learn=self._learn_now,
            observe=self._observe,
            clock=self._clock,
        )
        if is_on_a_link(address):
            try:
                self._link_listeners[port] = self._listen_at(port.address)
            except OSError:
                port.close()
                raise
        if address != PROBE_ADDRESS:
            port.forwarder = Forwarder(
                address,
                self._resolver_port,
                exempt=self._exempt,
                landing=port,
                budget=self._budget,
                limits=self._limits,
                clock=self._clock,
                new_id=self._new_id,
            )
        return port

    def _leave(self, port: UdpPort) -> None:
        self._leaving.pop(port)[0].cancel()
        self._close_port(port)

    def _close_port(self, port: UdpPort) -> None:
        listener = self._link_listeners.pop(port, None)
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        port.close()

    def _has_moved(self, resolver: IPAddress) -> bool:
        """This host's address on the resolver's link is another one now, or is gone."""
        if not is_on_a_link(resolver):
            return False
        try:
            return landing_address(resolver) != self._ports[resolver].address
        except OSError:
            return True

    def _landing(self, port: UdpPort) -> Landing:
        listener = self._link_listeners.get(port)
        tcp_port: int = self.tcp_port if listener is None else listener.getsockname()[1]
        return Landing(
            resolver=port.resolver.address, address=port.address, udp_port=port.port, tcp_port=tcp_port
        )

    def _listen_at(self, address: IPAddress) -> socket.socket:
        listener = _listener(address, 0)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        return listener

    def _resolver(self, address: IPAddress) -> Resolver:
        """What is known of a resolver; outlives its port, since networks come back."""
        known = self._resolvers.pop(address, None) or Resolver(
            address, stale_max_s=self._stale_max_s, limits=self._limits
        )
        self._resolvers[address] = known
        for forgotten in [a for a in self._resolvers if a not in self._ports and a != address]:
            if len(self._resolvers) <= 2 * self._limits.resolvers:
                break
            del self._resolvers[forgotten]
        return known

    def _learn_now(self, qname: str, addresses: Sequence[LearnedAddress]) -> None:
        """Learn before the answer leaves; fails open, since an unsteered answer is still a true one."""
        if not addresses:
            return
        try:
            self._learn(qname, addresses)
        except OSError:
            self._observe("unsteered", 1)

    # TCP

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                client, _peer = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._rest(listener)
                return
            client.setblocking(False)
            try:
                self._converse(client, listener)
            except OSError:
                client.close()

    def _rest(self, listener: socket.socket) -> None:
        """Out of descriptors or memory: look again later, since the waiting connection wakes us at once."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def go_on() -> None:
            if listener.fileno() >= 0:
                loop.add_reader(listener, self._accept, listener)

        loop.call_later(_REST_S, go_on)

    def _converse(self, client: socket.socket, listener: socket.socket) -> None:
        original = self._original_dst(client)
        if original is None or original == _bound_to(listener):
            client.close()  # dialled directly, not redirected: relaying it would be dialling ourselves
            return
        address, port = original
        resolver = self._resolver(self._scoped(address, listener))
        self._make_room()
        conversation = TcpConversation(
            client,
            resolver,
            None if resolver.address == PROBE_ADDRESS else port,
            zone=lambda: self.zone,
            learn=self._learn_now,
            observe=self._observe,
            exempt=self._exempt,
            ask_again=lambda query, question: self._ask_again(resolver, query, question),
            clock=self._clock,
            limits=self._limits,
        )
        # Connections come and go under a callback of the listener, so no TaskGroup can hold them:
        # this dict does, and close() waits for every one.
        task = asyncio.get_running_loop().create_task(conversation.run())
        self._conversations[task] = conversation
        task.add_done_callback(lambda done: self._conversations.pop(done, None))

    def _scoped(self, address: IPAddress, listener: socket.socket) -> IPAddress:
        """A packet's address has no scope: it is that of the link where it arrived."""
        if is_on_a_link(address):
            for port, its in self._link_listeners.items():
                if its is listener and port.resolver.address.packed == address.packed:
                    return port.resolver.address
        return address

    def _ask_again(self, resolver: Resolver, query: bytes, question: Question) -> None:
        port = self._ports.get(resolver.address)
        if port is not None:
            port.ask_again_later(query, question)

    def _make_room(self) -> None:
        """Beyond the limit the connection that was quiet longest is closed (RFC 7766 section 6.2.2)."""
        if len(self._conversations) >= self._limits.tcp_connections:
            quietest = min(self._conversations.items(), key=lambda item: item[1].active_at)[0]
            del self._conversations[quietest]
            quietest.cancel()


def _bound_to(sock: socket.socket) -> tuple[IPAddress, int]:
    host, port = sock.getsockname()[:2]
    return ip_address(host), port


def _listen() -> tuple[list[socket.socket], int]:
    """One port on 127.0.0.1 and, where the host has it, on ::1."""
    for _ in range(16):
        v4 = _listener(_LOOPBACK4, 0)
        port: int = v4.getsockname()[1]
        try:
            return [v4, _listener(_LOOPBACK6, port)], port
        except OSError:
            if not _has_loopback6():
                return [v4], port
            v4.close()
    raise StartRefused(
        "no TCP port is free on both 127.0.0.1 and ::1 for DNS",
        next_step="ss -ltn shows what listens there",
    )


def _listener(address: IPAddress, port: int) -> socket.socket:
    family = family_of(address)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(socket_address(address, port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _has_loopback6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


__all__ = ["OUTCOMES", "Learn", "Responder"]
