"""Queries on their way to one resolver over UDP: one fresh socket, port and id each (RFC 5452).

A flight carries one query's bytes, unchanged but for the id, and the clients that wait for its answer;
identical queries join it. A client that asks again has lost patience: its query is sent again. The
forwarder keeps no answers, decides nothing about names, and never answers by itself.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidegate_dns.address import Exempt, IPAddress, connected_udp_socket
from tidegate_dns.limits import Limits
from tidegate_dns.message import MAX_MESSAGE, Question
from tidegate_dns.policy import answers

Peer = tuple[Any, ...]
"""A client's socket address, as recvfrom gives it."""

_OUR_OWN_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})
_MAX_SENDS = 5


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One query in flight; `clients` has each waiting client with an id it asked with, and how often."""

    query: bytes
    """As the first client sent it, its id included."""
    steered: Question | None
    sock: socket.socket | None
    """None when not even sending was possible."""
    wire: bytes
    """As it is sent: under an id of our own."""
    sent_at: float
    clients: dict[tuple[Peer, int], int] = field(default_factory=dict)
    sends: int = 1
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def queries(self) -> int:
        """How many queries wait for its answer."""
        return sum(self.clients.values())


class Landing(Protocol):
    """Where flights end; called from the event loop, and must not block."""

    def answered(self, flight: Flight, answer: bytes) -> None:
        """The resolver's answer, under our own id."""

    def slow(self, flight: Flight) -> None:
        """Nothing came for `stale_after_s`; the flight goes on."""

    def unreachable(self, flight: Flight) -> None:
        """The resolver's host or network refused the query; the flight is over."""

    def unanswered(self, flight: Flight) -> None:
        """Nothing came for `answer_within_s`, or newer queries needed its place; the flight is over."""


class Budget:
    """How many flights there may be over all resolvers, of how many octets, and which is the oldest."""

    def __init__(self, flights: int, octets: int) -> None:
        self._flights = flights
        self._octets = octets
        self._open: dict[Flight, Callable[[Flight], None]] = {}

    def take(self, flight: Flight, end: Callable[[Flight], None]) -> None:
        """Count a flight in; the oldest ones are ended when there are too many."""
        self._octets -= len(flight.query)
        while self._open and (len(self._open) >= self._flights or self._octets < 0):
            oldest = next(iter(self._open))
            self._open[oldest](oldest)
        self._open[flight] = end

    def give_back(self, flight: Flight) -> None:
        if self._open.pop(flight, None) is not None:
            self._octets += len(flight.query)


class Forwarder:
    """The flights to one resolver."""

    def __init__(
        self,
        resolver: IPAddress,
        port: int,
        *,
        exempt: Exempt,
        landing: Landing,
        budget: Budget,
        limits: Limits,
        clock: Callable[[], float],
        new_id: Callable[[], int],
    ) -> None:
        self._resolver = resolver
        self._port = port
        self._exempt = exempt
        self._landing = landing
        self._budget = budget
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._loop = asyncio.get_running_loop()
        self._joinable: dict[bytes, Flight] = {}
        self._flights: set[Flight] = set()

    def forward(self, query: bytes, steered: Question | None, client: Peer | None) -> bool:
        """Send a query on, or join the one in flight; False when nothing could be sent.

        Without a client the answer only goes to the landing (a stale answer's background refresh).
        """
        waiting = (client, int.from_bytes(query[:2], "big")) if client is not None else None
        flight = self._joinable.get(query[2:])
        if flight is not None and self._joins(flight, waiting):
            return True
        try:
            sock = connected_udp_socket(self._resolver, self._port, self._exempt)
        except OSError as error:
            return self._failed_to_send(query, steered, waiting, error)
        wire = self._new_id().to_bytes(2, "big") + query[2:]
        flight = Flight(query=query, steered=steered, sock=sock, wire=wire, sent_at=self._clock())
        if waiting is not None:
            flight.clients[waiting] = 1
        try:
            sock.send(wire)
        except OSError as error:
            sock.close()
            return self._failed_to_send(query, steered, waiting, error)
        self._budget.take(flight, self._give_up)
        self._flights.add(flight)
        self._joinable[query[2:]] = flight
        self._loop.add_reader(sock, self._readable, flight, sock)
        flight.timers = [
            self._loop.call_later(self._limits.stale_after_s, self._landing.slow, flight),
            self._loop.call_later(self._limits.join_within_s, self._leave_behind, flight),
            self._loop.call_later(self._limits.answer_within_s, self._give_up, flight),
        ]
        return True

    def end(self, flight: Flight) -> None:
        """Forget a flight; its clients get no answer from it. Harmless when it has ended already."""
        if flight not in self._flights:
            return
        self._flights.discard(flight)
        self._leave_behind(flight)
        self._budget.give_back(flight)
        for timer in flight.timers:
            timer.cancel()
        if flight.sock is not None:
            self._loop.remove_reader(flight.sock)
            flight.sock.close()

    @property
    def is_awaited(self) -> bool:
        """Whether a client waits for an answer that is on its way."""
        return any(flight.clients for flight in self._flights)

    def close(self) -> None:
        for flight in list(self._flights):
            self.end(flight)

    def _joins(self, flight: Flight, waiting: tuple[Peer, int] | None) -> bool:
        """Whether the flight takes one more client; a full one is left for a new one."""
        if waiting is None:
            return True
        if waiting in flight.clients:
            flight.clients[waiting] += 1
            # The client's own retry: the datagram or its answer may be lost, so it goes out again.
            if flight.sends < _MAX_SENDS:
                flight.sends += 1
                self._send_again(flight)
            return True
        if len(flight.clients) >= self._limits.clients_per_flight:
            return False
        flight.clients[waiting] = 1
        return True

    def _send_again(self, flight: Flight) -> None:
        if flight.sock is None:
            return
        try:
            flight.sock.send(flight.wire)
        except BlockingIOError:
            pass
        except OSError:
            self._end_unreachable(flight)

    def _readable(self, flight: Flight, sock: socket.socket) -> None:
        try:
            answer = sock.recv(MAX_MESSAGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end_unreachable(flight)
            return
        if not answers(flight.wire, answer):
            return  # a forgery, or the answer to nothing of ours: the true one may still come
        self.end(flight)
        self._landing.answered(flight, answer)

    def _give_up(self, flight: Flight) -> None:
        self.end(flight)
        self._landing.unanswered(flight)

    def _end_unreachable(self, flight: Flight) -> None:
        self.end(flight)
        self._landing.unreachable(flight)

    def _failed_to_send(
        self, query: bytes, steered: Question | None, waiting: tuple[Peer, int] | None, error: OSError
    ) -> bool:
        if error.errno in _OUR_OWN_TROUBLE:
            return False
        flight = Flight(query=query, steered=steered, sock=None, wire=query, sent_at=self._clock())
        if waiting is not None:
            flight.clients[waiting] = 1
        self._landing.unreachable(flight)
        return True

    def _leave_behind(self, flight: Flight) -> None:
        if self._joinable.get(flight.query[2:]) is flight:
            del self._joinable[flight.query[2:]]
