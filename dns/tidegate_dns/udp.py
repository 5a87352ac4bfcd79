"""The responder's UDP side: one local port for each resolver, to which the kernel sends its queries.

The kernel rewrites the addresses of every datagram statelessly, so the port it arrives at tells which
resolver the client asked, and the answer leaves from the very same socket. A warm steered name is one look-up
by raw bytes; they are taken and answered many at once. Failing open: a resolver that times out is never
spoken for, since the client has its own patience and its own other resolvers; one whose host refuses is
passed on as SERVFAIL, because our datagram socket cannot carry an ICMP error back, and SERVFAIL is what makes
glibc, musl, Go, c-ares and systemd-resolved turn to the next server at once, as the refusal would.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

from tidegate_dns.address import IPAddress, LearnedAddress, family_of, landing_address, socket_address
from tidegate_dns.datagrams import Datagrams
from tidegate_dns.forwarder import Flight, Forwarder, Peer
from tidegate_dns.message import Question
from tidegate_dns.outcomes import Observe
from tidegate_dns.policy import Answer, Forward, Refuse, decide, lesson
from tidegate_dns.reply import refused, servfail
from tidegate_dns.resolver import Resolver, Told
from tidegate_dns.zone import Zone

DATAGRAMS_PER_WAKE = 64
"""How many datagrams one socket may take before the event loop looks at others (and renews the lease)."""

_RECEIVE_BUFFER = 1 << 20

LearnNow = Callable[[str, Sequence[LearnedAddress]], None]


class UdpPort:
    """One resolver's local port; raises OSError where this host has no address for it.

    `forwarder` is set after construction, and stays None for the pseudo resolver of the probe.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        zone: Callable[[], Zone],
        learn: LearnNow,
        observe: Observe,
        clock: Callable[[], float],
    ) -> None:
        self.resolver = resolver
        self.forwarder: Forwarder | None = None
        self.address = landing_address(resolver.address)
        self._sock = _bind(self.address)
        self._datagrams = Datagrams(self._sock, DATAGRAMS_PER_WAKE)
        self.port: int = self._sock.getsockname()[1]
        self._zone = zone
        self._learn = learn
        self._observe = observe
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop.add_reader(self._sock, self._drain)

    @property
    def sock(self) -> socket.socket:
        """Where the queries arrive, for whoever must look after them when this process hangs."""
        return self._sock

    def close(self) -> None:
        """Stop at once; clients that wait get no answer."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self._retry is not None:
            self._retry.cancel()
        if self.forwarder is not None:
            self.forwarder.close()

    def _drain(self) -> None:
        warm = self.resolver.udp.by_query
        now = self._clock()
        others: list[tuple[bytes, Peer]] = []
        datagrams = self._datagrams
        received = datagrams.receive()
        for number, behind_id in enumerate(received):
            kept = warm.get(behind_id)
            if kept is None or now >= kept.rendered_until:
                others.append((datagrams.whole(number), datagrams.sender(number)))
            else:
                datagrams.reply(number, kept.rendered)
        if hits := len(received) - len(others):
            self._observe("hit", hits)
            if lost := hits - datagrams.send():
                self._observe("undelivered", lost)
        for query, client in others:
            # Each by itself: they have left the socket, and one that fails must not take the others along.
            self._loop.call_soon(self._take, query, client, now)

    def _take(self, query: bytes, client: Peer, now: float) -> None:
        if self._closed:
            return
        match decide(query, self._zone()):
            case Refuse():
                self._observe("ignored", 1)
            case Answer(message=message):
                self._observe("local", 1)
                self._send(message, client)
            case Forward(steered=question):
                if self.forwarder is None:
                    self._observe("local", 1)
                    self._send(refused(query), client)
                elif question is None or not self._tell_from_memory(query, question, client, now):
                    sent = self.forwarder.forward(query, question, client)
                    self._observe("forwarded" if sent else "dropped", 1)

    def _tell_from_memory(self, query: bytes, question: Question, client: Peer, now: float) -> bool:
        told = self.resolver.fresh(query, now, udp=True)
        if told is not None:
            self._observe("hit", 1)
            self._tell(told, question, client)
            return True
        if not self.resolver.is_dark:
            return False
        told = self.resolver.stale(query, question, now, udp=True)
        if told is None:
            return False
        self._observe("stale", 1)
        self._tell(told, question, client)
        # Every client asks for itself as well, as it would without us: its pull may need a resolver that has
        # just come back, and must not wait for our own retries to find out.
        if self.forwarder is not None:
            self.forwarder.forward(query, question, None)
        self.ask_again_later(query, question)
        return True

    # Landing: where the forwarder's flights end

    def answered(self, flight: Flight, answer: bytes) -> None:
        now = self._clock()
        self.resolver.heard(now)
        try:
            if flight.steered is not None:
                self._study(flight, flight.steered, answer, now)
        finally:  # whatever goes wrong with learning it, a true answer goes out (I1)
            self._send_to_clients(flight, answer)

    def _study(self, flight: Flight, question: Question, answer: bytes, now: float) -> None:
        told = lesson(answer)
        if told.lookup_failed and self._tell_stale(flight, question, now):
            return
        self._learn(question.qname, told.addresses)
        self.resolver.keep(flight.query, question, answer, told, now, udp=True)

    def slow(self, flight: Flight) -> None:
        question = flight.steered
        if question is None:
            return
        self.resolver.kept_silent(flight.sent_at)
        self._tell_stale(flight, question, self._clock())
        if self.resolver.is_dark:
            self.ask_again_later(flight.query, question)

    def unreachable(self, flight: Flight) -> None:
        self.resolver.refused()
        self._came_of(flight, "unreachable")
        question = flight.steered
        if question is not None:
            self.ask_again_later(flight.query, question)
            if self._tell_stale(flight, question, self._clock()):
                return
        self._send_to_clients(flight, servfail(flight.query))

    def unanswered(self, flight: Flight) -> None:
        self._came_of(flight, "unanswered")
        flight.clients.clear()

    def _tell_stale(self, flight: Flight, question: Question, now: float) -> bool:
        """Answer the waiting clients from memory; they no longer wait for the flight."""
        if not flight.clients:
            return True
        told = self.resolver.stale(flight.query, question, now, udp=True)
        if told is None:
            return False
        self._came_of(flight, "forwarded_stale")
        try:
            self._learn(question.qname, told.addresses)
        finally:
            self._send_to_clients(flight, told.message)
        return True

    def _tell(self, told: Told, question: Question, client: Peer) -> None:
        try:
            self._learn(question.qname, told.addresses)
        finally:
            self._send(told.message, client)

    def _send_to_clients(self, flight: Flight, message: bytes) -> None:
        """Each under its own id; then nobody waits for the flight any more."""
        for client, id_ in flight.clients:
            self._send(id_.to_bytes(2, "big") + message[2:], client)
        flight.clients.clear()

    def _came_of(self, flight: Flight, outcome: str) -> None:
        if flight.queries:
            self._observe(outcome, flight.queries)

    def _send(self, message: bytes, client: Peer) -> None:
        try:
            self._sock.sendto(message, client)
        except OSError:
            self._observe("undelivered", 1)

    def ask_again_later(self, query: bytes, question: Question) -> None:
        """Ask a dark resolver again now and then, so that it is known when it is back."""
        if self._retry is None and not self._closed:
            self._retry = self._loop.call_later(self.resolver.next_retry_s(), self._ask_dark, query, question)

    def _ask_dark(self, query: bytes, question: Question) -> None:
        self._retry = None
        if self.resolver.is_dark and self.forwarder is not None:
            self.forwarder.forward(query, question, None)
            self.ask_again_later(query, question)


def _bind(address: IPAddress) -> socket.socket:
    """A bound, non-blocking socket at an address of this host; raises OSError."""
    family = family_of(address)
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind(socket_address(address, 0))
    except BaseException:
        sock.close()
        raise
    return sock
