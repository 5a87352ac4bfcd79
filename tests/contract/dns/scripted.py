"""A small working resolver, client and clock for the DNS contract tests; real sockets on loopback."""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, SOA, A, DNSRecord

from tidegate_dns.address import IPAddress, LearnedAddress, family_of, socket_address
from tidegate_dns.limits import Limits
from tidegate_dns.responder import Responder
from tidegate_dns.zone import Zone

DEADLINE_S = 5.0
REGISTRY = "registry.test"
ZONE = Zone.of([REGISTRY, "*.wild.test"])

Script = Callable[[bytes], bytes | Sequence[bytes] | None]


def question(name: str = REGISTRY, rrtype: str = "A", id_: int = 0x1234) -> bytes:
    record = DNSRecord.question(name, rrtype)
    record.header.id = id_
    return bytes(record.pack())


def answer(query: bytes, *addresses: str, ttl: int = 300, chain: Sequence[str] = ()) -> bytes:
    """A NOERROR answer with these addresses at the end of a CNAME chain."""
    reply = DNSRecord.parse(query).reply()
    owner = str(reply.q.qname)
    for target in chain:
        reply.add_answer(RR(owner, QTYPE.CNAME, rdata=CNAME(target), ttl=ttl))
        owner = target
    for address in addresses:
        rdata, rtype = (AAAA(address), QTYPE.AAAA) if ":" in address else (A(address), QTYPE.A)
        reply.add_answer(RR(owner, rtype, rdata=rdata, ttl=ttl))
    return bytes(reply.pack())


def negative(query: bytes, rcode: str = "NOERROR", *, minimum: int = 60) -> bytes:
    """NODATA, or NXDOMAIN and the like, with a SOA (RFC 2308)."""
    reply = DNSRecord.parse(query).reply()
    reply.header.rcode = getattr(RCODE, rcode)
    reply.add_auth(RR("test", QTYPE.SOA, rdata=SOA("ns.test", "h.test", (1, 2, 3, 4, minimum)), ttl=900))
    return bytes(reply.pack())


def bare(query: bytes, rcode: int) -> bytes:
    """An answer of no records with this rcode; all other flags as a resolver sets them."""
    return query[:2] + (0x8180 | rcode).to_bytes(2, "big") + query[4:]


def ttls(message: bytes) -> list[int]:
    parsed = DNSRecord.parse(message)
    return [record.ttl for record in [*parsed.rr, *parsed.auth]]


async def eventually(claim: Callable[[], bool]) -> None:
    """Wait until the claim is true; fails after the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not claim():
            await asyncio.sleep(0.005)


@dataclass
class HandClock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class ScriptedResolver:
    """Answers over UDP and TCP what its script says; may be silent, or gone so that its port refuses."""

    def __init__(self, script: Script, address: str = "127.0.0.2", port: int = 0) -> None:
        self.script = script
        self.address: IPAddress = ip_address(address)
        self.port = port
        self.asked: list[bytes] = []
        self.asked_from: list[tuple[str, int]] = []
        self.tcp_connections = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> "ScriptedResolver":
        loop = asyncio.get_running_loop()
        listener = self._bound(socket.SOCK_STREAM)
        self.port = listener.getsockname()[1]
        self._tcp = await asyncio.start_server(self._converse, sock=listener)
        self._udp, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), sock=self._bound(socket.SOCK_DGRAM)
        )
        return self

    def _bound(self, kind: socket.SocketKind) -> socket.socket:
        """Bound here: a loop would look a scope up in a thread, which may be in another namespace."""
        sock = socket.socket(family_of(self.address), kind | socket.SOCK_NONBLOCK)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(socket_address(self.address, self.port))
        return sock

    async def stop(self) -> None:
        """From now on the host refuses."""
        if self._udp is not None:
            self._udp.abort()
        if self._tcp is not None:
            self._tcp.close()
        self._udp = self._tcp = None
        await eventually(self._is_free)

    def hang_up(self) -> None:
        """Close the TCP connections there are."""
        for writer in self._writers:
            writer.close()

    def _is_free(self) -> bool:
        with socket.socket(family_of(self.address), socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(socket_address(self.address, self.port))
            except OSError:
                return False
            return True

    def replies(self, query: bytes) -> Sequence[bytes]:
        self.asked.append(query)
        said = self.script(query)
        return () if said is None else (said,) if isinstance(said, bytes) else said

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tcp_connections += 1
        self._writers.append(writer)
        try:
            while True:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                for reply in self.replies(await reader.readexactly(length)):
                    writer.write(struct.pack(">H", len(reply)) + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: ScriptedResolver) -> None:
        self._resolver = resolver

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport  # a datagram endpoint has no other transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._resolver.asked_from.append(addr[:2])
        for reply in self._resolver.replies(data):
            self._transport.sendto(reply, addr)


@dataclass
class Node:
    """A responder in front of one scripted resolver, and what it learned and observed."""

    resolver: ScriptedResolver
    clock: HandClock = field(default_factory=HandClock)
    limits: Limits = field(default_factory=Limits)
    zone: Zone = ZONE
    learned: list[tuple[str, tuple[LearnedAddress, ...]]] = field(default_factory=list)
    observed: dict[str, int] = field(default_factory=dict)
    exempted: list[socket.socket] = field(default_factory=list)
    set_is_broken: bool = False

    async def start(self) -> "Node":
        self.responder = Responder(
            zone=self.zone,
            learn=self._learn,
            exempt=self.exempted.append,
            original_dst=lambda _: (self.resolver.address, self.resolver.port),
            stale_max_s=3600,
            clock=self.clock,
            observe=self._observe,
            limits=self.limits,
            resolver_port=self.resolver.port,
        )
        await self.responder.open([self.resolver.address])
        return self

    @property
    def port(self) -> int:
        return self.responder.udp_ports[self.resolver.address]

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.resolver.address.version == 4 else "::1"

    @property
    def queries(self) -> dict[str, int]:
        """What became of queries, without what never did."""
        return {outcome: count for outcome, count in self.observed.items() if count}

    def learned_addresses(self) -> set[str]:
        return {str(a.address) for _, addresses in self.learned for a in addresses}

    def client(self) -> "UdpClient":
        return UdpClient(self.loopback, self.port)

    async def ask(self, query: bytes, *, within_s: float = DEADLINE_S) -> bytes:
        with self.client() as client:
            client.send(query)
            return await client.receive(within_s=within_s)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.loopback, self.responder.tcp_port)

    async def ask_tcp(self, query: bytes) -> bytes:
        reader, writer = await self.dial()
        try:
            writer.write(framed(query))
            return await read_framed(reader)
        finally:
            writer.close()

    def _learn(self, name: str, addresses: Sequence[LearnedAddress]) -> None:
        if self.set_is_broken:
            raise OSError("the set is full")
        self.learned.append((name, tuple(addresses)))

    def _observe(self, outcome: str, count: int) -> None:
        self.observed[outcome] = self.observed.get(outcome, 0) + count


class UdpClient:
    """A connected client, as stub resolvers are: what comes from elsewhere does not reach it."""

    def __init__(self, host: str, port: int) -> None:
        self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.connect(socket_address(ip_address(host), port))

    def __enter__(self) -> "UdpClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, query: bytes) -> None:
        self._sock.send(query)

    async def receive(self, *, within_s: float = DEADLINE_S) -> bytes:
        async with asyncio.timeout(within_s):
            return await asyncio.get_running_loop().sock_recv(self._sock, 65535)

    def has_nothing(self) -> bool:
        try:
            self._sock.recv(65535, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


def framed(message: bytes) -> bytes:
    return struct.pack(">H", len(message)) + message


async def read_framed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        return await reader.readexactly(length)
