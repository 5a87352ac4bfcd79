"""The accepting loop, met by real clients on real sockets: who is served, who goes on, who is refused."""

import asyncio
import errno
import os
import re
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.authority import PROBE_HOST, Authority
from tidegate_proxy.interception.client_hello import ClientHello
from tidegate_proxy.interception.interceptor import OUTCOMES, Arrival, Interceptor, distrusts
from tidegate_proxy.interception.leaf import Leaves
from tidegate_proxy.interception.peek import peek_hello
from tidegate_proxy.site import Scheme

Until = Callable[[Callable[[], object]], Awaitable[None]]
STEERED = "ghcr.io"
PLAIN = "registry.local"
SCHEMES: dict[str, Scheme] = {STEERED: "https", PLAIN: "http"}


class Site(asyncio.Protocol):
    """A small HTTP/1.1 server: it answers each request with the name that was asked for."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the base class

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            body = f"{self.arrival.sni} via {self.arrival.original}".encode()
            body = body.ljust(body_bytes_asked_for(data))
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            if b"Connection: close" in data:
                self.transport.close()


def body_bytes_asked_for(request: bytes) -> int:
    asked = re.match(rb"GET /v2/(\d+) ", request)
    return int(asked[1]) if asked else 0


class Stage:
    """An interceptor before an origin that echoes, and what both have seen."""

    def __init__(self, directory: Path) -> None:
        clock = lambda: datetime.now(UTC)  # noqa: E731 - a clock is a value
        authority = Authority.load_or_create(directory, hosts=[STEERED], machine_id="m", now=clock())
        self.anchor = authority.certificate_pem.decode()
        self.leaves = Leaves(authority, clock)
        self.observed: list[tuple[str, str]] = []
        self.arrivals: list[Arrival] = []
        self.failed: list[tuple[Arrival, OSError]] = []
        self.origin_met = 0
        self.bug: Exception | None = None
        self.avoid: str | Exception | None = None
        self.plain_http = False
        self.dialled: list[str | None] = []
        self.withheld: str | None = None
        self.asked: list[tuple[Endpoint, Endpoint]] = []
        self.parts = ExitStack()

    async def open(self, *, host: str = "127.0.0.1", max_connections: int = 4096) -> "Stage":
        self.origin = await asyncio.start_server(self._echo, "127.0.0.1", 0)
        self.original: Endpoint | None = Endpoint.of(*self.origin.sockets[0].getsockname())
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        dual_stack = host == "::"
        self.listener = socket.create_server((host, 0), family=family, dualstack_ipv6=dual_stack)
        self.address = self.listener.getsockname()[:2]
        self.interceptor = Interceptor(
            original_dst=lambda _sock: self.original,
            scheme_of=lambda name, _port: SCHEMES.get(name),
            plain_http_on=lambda _port: self.plain_http,
            tls_context=self._context,
            http_protocol=self._site,
            dial=self._dial,
            observe=self._observe,
            withheld=lambda _arrival: self.withheld,
            why_splice=self._why_splice,
            handshake_failed=lambda arrival, error: self.failed.append((arrival, error)),
            hello_timeout_s=0.15,
            max_connections=max_connections,
        )
        self.serving = asyncio.create_task(self.interceptor.serve([self.listener]))
        return self

    async def close(self) -> None:
        self.serving.cancel()
        with suppress(asyncio.CancelledError):
            await self.serving
        self.listener.close()
        self.origin.close()
        self.parts.close()

    def _observe(self, outcome: str, reason: str) -> None:
        assert (outcome, reason) in OUTCOMES or reason in (self.avoid, self.withheld)
        self.observed.append((outcome, reason))

    def _why_splice(self, arrival: Arrival) -> str | None:
        self.asked.append((arrival.peer, arrival.original))
        if isinstance(self.avoid, Exception):
            raise self.avoid
        return self.avoid

    def _context(self, sni: str) -> ssl.SSLContext:
        if self.bug is not None:
            raise self.bug
        return self.leaves.context(sni)

    def _site(self, arrival: Arrival) -> Site:
        self.arrivals.append(arrival)
        return Site(arrival)

    async def _dial(self, endpoint: Endpoint, host: str | None) -> socket.socket:
        self.dialled.append(host)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (str(endpoint.address), endpoint.port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.origin_met += 1
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.anchor)

    def connect(self) -> socket.socket:
        """A client's socket, connected, closed when the test ends."""
        sock = self.parts.enter_context(socket.create_connection(self.address))
        sock.setblocking(False)
        return sock

    async def ask(self, sni: str, *, context: ssl.SSLContext | None = None) -> bytes:
        """One request over TLS: the body that came back."""
        reader, writer = await asyncio.open_connection(
            *self.address, ssl=context or self.trusting(), server_hostname=sni
        )
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))
        writer.close()
        return body

    async def echoed(self, sock: socket.socket, sent: bytes) -> bytes:
        """All that comes back for `sent` and the end of it."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, sent)
        sock.shutdown(socket.SHUT_WR)
        return await rest(sock)


async def rest(sock: socket.socket) -> bytes:
    got = b""
    async with asyncio.timeout(5):
        while more := await asyncio.get_running_loop().sock_recv(sock, 65536):
            got += more
    return got


def hang_up(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def hello_bytes(host: str | None, *protocols: str, padding: int = 0) -> bytes:
    """What a real client sends first; `padding` makes it as large as a post-quantum key share would."""
    context = ssl.create_default_context()
    context.check_hostname = host is not None
    if protocols or padding:
        context.set_alpn_protocols([*protocols, *(f"{n:0200d}" for n in range(padding // 201))])
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = await Stage(tmp_path / "authority").open()
    yield stage
    await stage.close()


async def test_a_steered_name_is_answered_by_us_and_never_reaches_the_origin(stage: Stage) -> None:
    """N3: the bytes that were looked at begin the handshake."""
    body = await stage.ask(STEERED)

    assert body == f"{STEERED} via {stage.original}".encode()
    assert stage.observed == [("intercepted", "steered")]
    assert stage.origin_met == 0


@pytest.mark.parametrize("whose_end", ["ours", "the client's"])
async def test_an_orderly_end_cuts_nothing_off(stage: Stage, whose_end: str) -> None:
    """I1, I2: what was written is delivered in full before the end, however slowly the client takes it."""
    size = 8 << 20  # more than both kernels' buffers hold
    reader, writer = await asyncio.open_connection(
        *stage.address, ssl=stage.trusting(), server_hostname=STEERED, limit=4096
    )
    ending = "Connection: close\r\n" if whose_end == "ours" else ""
    writer.write(f"GET /v2/{size} HTTP/1.1\r\nHost: x\r\n{ending}\r\n".encode())
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)  # the server has written, and ended where the end is its own
        assert len(await reader.readexactly(size)) == size
        if whose_end == "ours":
            assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_the_probe_is_answered_whatever_is_steered(stage: Stage) -> None:
    """I3: the agent's own probe takes the same way as a client."""
    assert PROBE_HOST.encode() in await stage.ask(PROBE_HOST)
    assert stage.observed == [("intercepted", "probe")]


@pytest.mark.parametrize(
    ("avoid", "reason"), [("stranger", "stranger"), (RuntimeError("a bug"), "error")], ids=["reason", "bug"]
)
async def test_a_client_that_is_to_be_left_alone_reaches_the_origin(
    stage: Stage, avoid: str | Exception, reason: str
) -> None:
    """N9, I1: it is asked about by its own endpoint and where it was going; also after a bug there."""
    stage.avoid = avoid
    client = stage.connect()
    sent = hello_bytes(STEERED)

    assert await stage.echoed(client, sent) == sent
    assert stage.observed == [("spliced", reason)]
    assert stage.asked == [(Endpoint.of(*client.getsockname()), stage.original)]


REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: registry.LOCAL:5000\r\nUser-Agent: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("piece", [1000, 7, 1])
async def test_a_plain_registry_is_known_by_the_host_field(stage: Stage, piece: int) -> None:
    """C24: without TLS the head is waited for and read without taking it, however it is cut in pieces.

    Who asks does not matter, since no certificate is shown.
    """
    stage.plain_http, stage.avoid = True, "stranger"
    client = stage.connect()
    loop = asyncio.get_running_loop()

    for at in range(0, len(REQUEST), piece):
        await loop.sock_sendall(client, REQUEST[at : at + piece])
    answer = await rest(client)

    assert answer.endswith(f"{PLAIN} via {stage.original}".encode())
    assert stage.observed == [("intercepted", "steered")]
    assert (stage.origin_met, stage.asked) == (0, [])


async def test_a_request_whose_head_is_long_is_met_as_any_other(stage: Stage) -> None:
    """C24: registries' tokens are some kilobytes."""
    stage.plain_http = True
    client = stage.connect()
    head = REQUEST[:-2] + b"Authorization: Bearer " + b"x" * 12_000 + b"\r\n\r\n"

    await asyncio.get_running_loop().sock_sendall(client, head)

    assert (await rest(client)).endswith(f"{PLAIN} via {stage.original}".encode())


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (REQUEST.replace(b"registry.LOCAL", b"www.example.org"), "other_scheme"),
        (REQUEST.replace(b"registry.LOCAL:5000", STEERED.encode()), "other_scheme"),
        (REQUEST.replace(b"Host", b"Hast"), "not_tls"),
        (REQUEST.replace(b"User-Agent", b"Host"), "not_tls"),
        (REQUEST[:-2] + b"X: " + b"x" * 17_000 + b"\r\n\r\n", "not_tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not_tls"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not_tls"),
        (REQUEST[:40], "incomplete"),
    ],
    ids=["another host", "a host with TLS", "no host", "two hosts", "endless", "HTTP/2", "no HTTP", "half"],
)
async def test_what_is_no_request_for_a_plain_registry_goes_on(
    stage: Stage, sent: bytes, reason: str
) -> None:
    """C24, N6: byte for byte."""
    stage.plain_http = True

    assert await stage.echoed(stage.connect(), sent) == sent
    assert stage.observed == [("spliced", reason)]


@pytest.mark.parametrize(("plain_http", "reason"), [(False, "not_tls"), (True, "intercepted")])
async def test_only_ports_of_plain_registries_are_looked_at_for_requests(
    stage: Stage, plain_http: bool, reason: str
) -> None:
    """C24, N6: elsewhere whoever speaks HTTP goes on at once."""
    stage.plain_http = plain_http
    client = stage.connect()

    await asyncio.get_running_loop().sock_sendall(client, REQUEST)
    client.shutdown(socket.SHUT_WR)
    await rest(client)

    assert reason in stage.observed[0]


async def test_tls_for_a_plain_registry_goes_on(stage: Stage) -> None:
    """C24: clients that try TLS first are told by the registry itself that it has none."""
    stage.plain_http = True
    sent = hello_bytes(PLAIN)

    assert await stage.echoed(stage.connect(), sent) == sent
    assert stage.observed == [("spliced", "other_scheme")]


async def test_whoever_dials_is_told_which_registry_is_meant(stage: Stage) -> None:
    """N11, N9: by the name alone, where the address says nothing; nothing of others' names."""
    stage.avoid, stage.plain_http = "stranger", True

    for sent in (
        hello_bytes(STEERED),
        hello_bytes(PLAIN),
        hello_bytes("neighbour.example"),
        b"SSH-2.0-x\r\n",
    ):
        await stage.echoed(stage.connect(), sent)

    assert stage.dialled == [STEERED, PLAIN, None, None]


async def test_nobody_asks_who_a_neighbour_or_the_probe_is(stage: Stage) -> None:
    """N6, I3: the one goes on anyway, and the other must be served whatever is known of clients."""
    stage.avoid = "stranger"

    await stage.echoed(stage.connect(), hello_bytes("neighbour.example"))
    assert PROBE_HOST.encode() in await stage.ask(PROBE_HOST)

    assert stage.asked == []
    assert stage.observed == [("spliced", "other_sni"), ("intercepted", "probe")]


GOES_ON = {
    "another name": (hello_bytes("neighbour.example"), "other_sni"),
    "a name below a steered one": (hello_bytes("x.ghcr.io"), "other_sni"),
    "no name": (hello_bytes(None), "no_sni"),
    "an address for a name": (hello_bytes("192.0.2.1"), "no_sni"),
    "a steered name over HTTP/2 alone": (hello_bytes(STEERED, "h2"), "no_http1"),
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: ghcr.io\r\n\r\n", "not_tls"),
    "garbage": (bytes(range(255, 0, -1)) * 20, "not_tls"),
    "one byte": (b"x", "not_tls"),
    "half a hello, then the end": (hello_bytes(STEERED)[:100], "incomplete"),
    "nothing, then the end": (b"", "silent"),
}


@pytest.mark.parametrize(("sent", "reason"), GOES_ON.values(), ids=GOES_ON.keys())
async def test_everything_else_reaches_the_origin_byte_for_byte(
    stage: Stage, sent: bytes, reason: str
) -> None:
    """N6: neighbours on a shared address are untouched, and so is what is not TLS."""
    back = await stage.echoed(stage.connect(), sent)

    assert back == sent
    assert stage.observed == [("spliced", reason)]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"", "silent"), (hello_bytes(STEERED)[:100], "incomplete")],
    ids=["silent", "half a hello"],
)
async def test_a_client_that_stops_talking_is_let_through_when_time_is_up(
    stage: Stage, until: Until, sent: bytes, reason: str
) -> None:
    """N6: where the server speaks first nobody waits for ever; what was said meanwhile is not lost."""
    client = stage.connect()
    await asyncio.get_running_loop().sock_sendall(client, sent)
    await until(lambda: stage.origin_met)

    assert await stage.echoed(client, b"at last") == sent + b"at last"
    assert stage.observed == [("spliced", reason)]


class Counting(socket.socket):
    """A socket that counts how often it is looked at."""

    looks = 0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        self.looks += 1
        return super().recv(size, flags)


async def test_a_hello_that_comes_byte_by_byte_costs_a_handful_of_looks() -> None:
    """I8: a slow client does not keep the loop busy, however large its hello."""
    sent = hello_bytes(STEERED, "http/1.1", padding=4000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted = Counting(fileno=listener.accept()[0].detach())
        accepted.setblocking(False)
    with client, accepted:
        peeking = asyncio.create_task(peek_hello(accepted, timeout_s=30))
        for byte in sent:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        hello = await peeking

        assert isinstance(hello, ClientHello) and hello.sni == STEERED
        assert accepted.looks <= 6
        assert accepted.recv(65536) == sent
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


async def test_a_handshake_that_comes_byte_by_byte_is_intercepted(stage: Stage, until: Until) -> None:
    """N3: whatever the segments, the same bytes begin the handshake."""
    client = stage.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = stage.trusting().wrap_bio(to_client, to_server, server_hostname=STEERED)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    for byte in to_server.read():
        client.send(bytes([byte]))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while tls.version() is None or tls.getpeercert() is None:
            to_client.write(await asyncio.get_running_loop().sock_recv(client, 65536))
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
    await asyncio.get_running_loop().sock_sendall(client, to_server.read())
    await until(lambda: stage.observed)

    assert stage.observed == [("intercepted", "steered")]


async def test_a_reset_while_we_look_is_the_end_of_it(stage: Stage, until: Until) -> None:
    """I1: the next client is served as if nothing had been."""
    client = stage.connect()
    await asyncio.get_running_loop().sock_sendall(client, hello_bytes(STEERED)[:50])
    await until(lambda: stage.interceptor.connections)
    hang_up(client)
    await until(lambda: stage.observed)

    assert stage.observed == [("refused", "reset")]
    assert stage.origin_met == 0
    assert await stage.ask(STEERED)


async def test_a_connection_to_the_agent_itself_is_refused(stage: Stage) -> None:
    """I5: dialling the original destination would be dialling ourselves, without end."""
    for original in (None, Endpoint.of(*stage.address)):
        stage.original = original
        with pytest.raises(ConnectionResetError):
            await rest(stage.connect())

    assert stage.observed == [("refused", "own_address")] * 2
    assert stage.origin_met == 0


async def test_an_origin_that_cannot_be_reached_is_a_reset(stage: Stage) -> None:
    """N6: the client learns at once, as it would have without us."""
    stage.origin.close()
    await stage.origin.wait_closed()
    client = stage.connect()
    await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")

    with pytest.raises(ConnectionResetError):
        await rest(client)
    assert stage.observed == [("refused", "unreachable")]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_does_not_trust_us_is_told_of(
    stage: Stage, until: Until, version: ssl.TLSVersion
) -> None:
    """N9: who it was and why, so that it can be left alone from then on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version

    def shake() -> None:
        with socket.create_connection(stage.address) as sock, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(sock, server_hostname=STEERED)

    await asyncio.to_thread(shake)  # asyncio's own client would hang up without sending its alert
    await until(lambda: stage.failed)

    [(arrival, error)] = stage.failed
    assert arrival.sni == STEERED
    assert arrival.peer.address.is_loopback and arrival.peer.port > 0
    assert distrusts(error)
    assert stage.observed == [("refused", "distrusted")]


async def test_a_handshake_that_breaks_off_is_no_distrust(stage: Stage, until: Until) -> None:
    """N9: a client that went away said nothing about our certificate."""
    client = stage.connect()
    await asyncio.get_running_loop().sock_sendall(client, hello_bytes(STEERED))
    assert await asyncio.get_running_loop().sock_recv(client, 1)
    hang_up(client)
    await until(lambda: stage.failed)

    assert not distrusts(stage.failed[0][1])
    assert stage.observed == [("refused", "handshake")]


async def test_a_bug_in_what_would_serve_is_a_splice(stage: Stage) -> None:
    """I1: before a byte is consumed, whatever goes wrong leaves the origin to serve."""
    stage.bug = RuntimeError("out of luck")
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
    sent = hello_bytes(STEERED)

    assert await stage.echoed(stage.connect(), sent) == sent
    assert stage.observed == [("spliced", "error")]
    assert reports[0]["exception"] is stage.bug


@contextmanager
def no_descriptors_left() -> Iterator[Callable[[], None]]:
    """Every descriptor that the process may have is taken; call what comes to give them back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))

    def give_back() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while taken:
            os.close(taken.pop())

    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        yield give_back
    finally:
        give_back()


async def test_without_descriptors_it_waits_and_does_not_spin(stage: Stage, until: Until) -> None:
    """I8: accept fails with EMFILE while the backlog stays readable; ten looks a second, no more."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    with client, no_descriptors_left() as give_back:
        started = loop.time()
        await loop.sock_connect(client, stage.address)
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: len(stage.observed) >= 3)
        took = loop.time() - started
        give_back()
        assert await stage.echoed(client, b"") == b"GET / HTTP/1.1\r\n\r\n"

    assert took >= 0.2
    assert set(stage.observed[:-1]) == {("refused", "no_descriptors")}
    assert stage.observed[-1] == ("spliced", "not_tls")


async def test_more_than_the_most_wait_for_their_turn(tmp_path: Path, until: Until) -> None:
    """I8: connections in flight are bounded, and nobody is turned away for it."""
    stage = await Stage(tmp_path / "authority").open(max_connections=2)
    first, second, third = stage.connect(), stage.connect(), stage.connect()
    for client in (first, second, third):
        client.send(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: len(stage.observed) == 2)
    assert stage.interceptor.connections == 2
    first.close()

    assert await stage.echoed(third, b"") == b"GET / HTTP/1.1\r\n\r\n"
    assert len(stage.observed) == 3
    await stage.close()


async def test_what_is_in_flight_ends_before_the_stop(stage: Stage, until: Until) -> None:
    """N18: no more connections are taken, those that are here end in peace."""
    reader, writer = await asyncio.open_connection(
        *stage.address, ssl=stage.trusting(), server_hostname=STEERED
    )
    neighbour = stage.connect()
    await asyncio.get_running_loop().sock_sendall(neighbour, b"GET ")
    await until(lambda: len(stage.observed) == 2)
    stage.interceptor.stop_accepting()
    draining = asyncio.create_task(stage.interceptor.drain(5))
    late = stage.connect()
    await asyncio.get_running_loop().sock_sendall(late, b"GET ")

    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert not draining.done()
    writer.close()
    await draining
    assert stage.interceptor.splices == 1
    assert await stage.echoed(neighbour, b"/") == b"GET /"
    await stage.serving
    assert stage.interceptor.connections == 0
    assert len(stage.observed) == 2


async def test_a_drain_that_took_too_long_cuts_what_is_intercepted_alone(stage: Stage, until: Until) -> None:
    """N18, N6: a stop ends in bounded time, but a neighbour is not cut for it until we say so."""
    reader, writer = await asyncio.open_connection(
        *stage.address, ssl=stage.trusting(), server_hostname=STEERED
    )
    neighbour = stage.connect()
    await asyncio.get_running_loop().sock_sendall(neighbour, b"GET ")
    await until(lambda: len(stage.observed) == 2)
    stage.interceptor.stop_accepting()
    async with asyncio.timeout(5):
        await stage.interceptor.drain(0.05)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert (stage.interceptor.connections, stage.interceptor.splices) == (1, 1)
        assert not stage.serving.done()
        stage.interceptor.cut()
        await stage.serving

    with pytest.raises(ConnectionResetError):
        await rest(neighbour)
    writer.close()
    await until(lambda: stage.interceptor.connections == 0)


async def test_a_cancelled_accepting_loop_leaves_no_socket_behind(tmp_path: Path, until: Until) -> None:
    """I4: undecided, spliced and intercepted connections all end with it."""
    before = open_sockets()
    stage = await Stage(tmp_path / "authority").open()
    intercepted = await asyncio.open_connection(*stage.address, ssl=stage.trusting(), server_hostname=STEERED)
    spliced, undecided = stage.connect(), stage.connect()
    spliced.send(b"GET ")
    undecided.send(hello_bytes(STEERED)[:9])
    await until(lambda: len(stage.observed) == 2 and stage.interceptor.connections == 3)
    await stage.close()
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await intercepted[0].read()
    intercepted[1].close()
    await stage.origin.wait_closed()

    await until(lambda: open_sockets() == before)


def open_sockets() -> set[str]:
    links = (path for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {target for link in links if (target := str(link.readlink())).startswith("socket:")}


@pytest.mark.parametrize(
    ("host", "met_at", "peer"), [("::1", "::1", "::1"), ("::", "127.0.0.1", "127.0.0.1")]
)
async def test_both_families_arrive(tmp_path: Path, until: Until, host: str, met_at: str, peer: str) -> None:
    """N12: an IPv6 client is named by its address, and an IPv4 one by its own on a socket for both."""
    stage = await Stage(tmp_path / "authority").open(host=host)
    stage.address = (met_at, stage.address[1])
    assert await stage.ask(STEERED)

    assert str(stage.arrivals[0].peer.address) == peer
    await stage.close()


@pytest.mark.parametrize("plain_http", [False, True])
async def test_what_is_withheld_from_a_client_it_gets_from_the_origin(stage: Stage, plain_http: bool) -> None:
    """N21, C24: with TLS and without; nothing of its connection is served here."""
    stage.plain_http, stage.withheld = plain_http, "node_login"
    sent = REQUEST if plain_http else hello_bytes(STEERED)

    assert await stage.echoed(stage.connect(), sent) == sent
    assert stage.observed == [("spliced", "node_login")]


async def test_a_listener_may_come_and_go(stage: Stage) -> None:
    """N21: bridges do; what waits at one when it goes is taken, and what came by it goes on."""
    with socket.create_server(("127.0.0.1", 0)) as late:
        stage.interceptor.listen_too(late)
        stage.address = late.getsockname()[:2]
        assert STEERED.encode() in await stage.ask(STEERED)
        established, waiting = stage.connect(), stage.connect()
        stage.interceptor.leave(late)
        stage.interceptor.leave(late)

        sent = hello_bytes("neighbour.example")
        assert await stage.echoed(waiting, sent) == sent
        stage.connect()
        assert await stage.echoed(established, sent) == sent
    assert len(stage.observed) == 3
