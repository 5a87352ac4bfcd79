"""The doors of a central tier on real sockets: clients that are slow, early, odd or not welcome."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest

from tidegate_proxy.central.accepting import Door
from tidegate_proxy.central.access import Access
from tidegate_proxy.central.connect_front import OUTCOMES, ConnectFront
from tidegate_proxy.central.request_head import MAX_HEAD_BYTES
from tidegate_proxy.central.request_head import Authority as Target
from tidegate_proxy.central.tunnel import dial, dial_through
from tidegate_proxy.interception.authority import Authority
from tidegate_proxy.interception.interceptor import Arrival
from tidegate_proxy.interception.leaf import Leaves
from tidegate_proxy.upstreams.tier_url import TierUrl

REGISTRY = "ghcr.io"
OWN_NAME = "tidegate-test"
CONNECT = f"CONNECT {REGISTRY}:443 HTTP/1.1\r\nHost: {REGISTRY}:443\r\n\r\n".encode()
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Greeter(asyncio.Protocol):
    """Says what it is for, and ends."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        del data
        self._transport.write(f"{self._arrival.sni}:{self._arrival.original.port}".encode())  # type: ignore[attr-defined]  # uvloop's has the method, not the base class
        self._transport.close()


class Stage:
    """A front on loopback, and what it observed."""

    def __init__(self, directory: Path) -> None:
        clock = lambda: datetime.now(UTC)  # noqa: E731 - a clock is a value
        self.authority = Authority.load_or_create(directory, hosts=[REGISTRY], machine_id="m", now=clock())
        self.leaves = Leaves(self.authority, clock)
        self.observed: list[tuple[str, str]] = []
        self.resolved: list[str] = []
        self.bug = False
        self.parents: list[TierUrl] = []

    def open(
        self, *, access: Access | None = None, tunnels: bool = True, max_connections: int = 16
    ) -> "Stage":
        front = ConnectFront(
            access=access or Access(),
            is_registry=lambda host, port: (host, port) == (REGISTRY, 443),
            tunnels=tunnels,
            tls_context=self._context,
            http_protocol=Greeter,
            dial=self._dial,
            ca_pem=self.authority.certificate_pem,
            name=OWN_NAME,
            observe=self._observe,
            denied=lambda _: None,
            head_timeout_s=0.3,
        )
        self.door = Door(handle=front.handle, observe=self._observe, max_connections=max_connections)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.door.open([self.listener])
        return self

    async def close(self) -> None:
        self.door.stop_accepting()
        await self.door.drain(0)
        self.listener.close()

    def _context(self, host: str) -> ssl.SSLContext:
        if self.bug:
            raise RuntimeError("a bug")
        return self.leaves.context(host)

    async def _dial(self, to: Target) -> socket.socket:
        if self.parents:
            return await dial_through(to, self.parents, resolve=self._resolve)
        return await dial(to, resolve=self._resolve)

    async def _resolve(self, host: str) -> Sequence[str]:
        self.resolved.append(host)
        return [host] if host[0].isdigit() else ["127.0.0.1"]

    def _observe(self, outcome: str, reason: str) -> None:
        assert (outcome, reason) in OUTCOMES
        self.observed.append((outcome, reason))

    async def say(self, *pieces: bytes) -> bytes:
        """Send, piece by piece, and read to the end."""
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                answer = await reader.read()
            writer.close()
            return answer

    async def intercepted(self, *, sni: str = REGISTRY, at_once: bool = False) -> bytes:
        """CONNECT and TLS in one go or one after the other, trusting the front's authority alone."""
        context = ssl.create_default_context(cadata=self.authority.certificate_pem.decode())
        context.check_hostname = sni == REGISTRY
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=sni)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        try:
            async with asyncio.timeout(5):
                writer.write(CONNECT + hello if at_once else CONNECT)
                assert await reader.readexactly(len(ESTABLISHED)) == ESTABLISHED
                if not at_once:
                    writer.write(hello)
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        incoming.write(await reader.read(65536))
                tls.write(b"hello")
                writer.write(outgoing.read())
                while True:
                    try:
                        return tls.read()
                    except ssl.SSLWantReadError:
                        incoming.write(await reader.read(65536))
        finally:
            writer.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path / "ca")
    yield made
    await made.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_registry_is_answered_with_our_certificate_also_for_who_does_not_wait(
    stage: Stage, at_once: bool
) -> None:
    """T1: bytes that come with the head of CONNECT belong to the tunnel, and not one of them is lost."""
    stage.open()

    assert await stage.intercepted(at_once=at_once) == f"{REGISTRY}:443".encode()
    assert stage.observed == [("intercepted", "registry")]


async def test_a_head_may_come_byte_by_byte_but_not_for_ever(stage: Stage) -> None:
    """I8: time and size of a head are bounded."""
    stage.open()

    answer = await stage.say(*(CONNECT[at : at + 1] for at in range(len(CONNECT))))
    silent = await stage.say(CONNECT[:-1])
    too_long = await stage.say(b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n")

    assert answer.startswith(ESTABLISHED)
    assert silent == b""
    assert too_long.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("to", ["localhost:443", "127.0.0.1:443", "169.254.169.254:443", "[::1]:443"])
async def test_a_tunnel_to_this_machine_is_refused(stage: Stage, to: str) -> None:
    """T8: by name and by address."""
    stage.open()

    answer = await stage.say(f"CONNECT {to} HTTP/1.1\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert stage.observed == [("refused", "other_host")]


async def test_other_hosts_are_refused_where_only_registries_are_wanted(stage: Stage) -> None:
    """T8: `others = "refuse"`; nothing is even looked up. Ports beside 443 never are."""
    stage.open(tunnels=False)

    assert (await stage.say(b"CONNECT auth.docker.io:443 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
    assert (await stage.say(f"CONNECT {REGISTRY}:22 HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 403 ")
    assert stage.resolved == []


async def test_who_is_not_allowed_gets_no_page_and_no_tunnel(stage: Stage) -> None:
    """T8: said so, in words."""
    stage.open(access=Access([ip_network("10.0.0.0/8")]))

    for request in (CONNECT, b"GET /ca.crt HTTP/1.1\r\nHost: x\r\n\r\n"):
        answer = await stage.say(request)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"127.0.0.1 may not use this proxy" in answer
    assert stage.resolved == []


async def test_a_request_that_came_by_ourselves_is_refused(stage: Stage) -> None:
    """RFC 9110, 7.6.3: a proxy that is its own parent would go round until it has no descriptors."""
    stage.open()

    answer = await stage.say(
        f"CONNECT {REGISTRY}:443 HTTP/1.1\r\nVia: 1.1 x, 1.1 {OWN_NAME}\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 508 ")


@pytest.mark.parametrize("sni", ["quay.io", REGISTRY])
async def test_what_we_cannot_answer_goes_to_the_registry_itself(stage: Stage, sni: str) -> None:
    """I1, T8: another name in the tunnel, or a bug of ours: dialled is what CONNECT named, nothing else."""
    stage.bug = sni == REGISTRY
    stage.open()

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await stage.intercepted(sni=sni)

    assert stage.resolved == [REGISTRY]
    assert stage.observed == [("refused", "unreachable")]  # nobody is there to be dialled


async def test_beyond_the_bound_connections_wait_and_are_served_later(stage: Stage) -> None:
    """I8: a full house turns nobody away."""
    stage.open(max_connections=2)
    idle = [await asyncio.open_connection("127.0.0.1", stage.port) for _ in range(2)]
    page = asyncio.create_task(stage.say(b"GET /ca.crt HTTP/1.1\r\nHost: x\r\n\r\n"))

    assert (await page).startswith(b"HTTP/1.1 200 ")  # once the idle ones ran out of time
    assert ("refused", "silent") in stage.observed
    for _, writer in idle:
        writer.close()


async def test_where_a_companys_proxy_is_the_only_way_out_tunnels_go_through_it(stage: Stage) -> None:
    """T9: by the first one that agrees, with its login; what the far end says at once is not lost."""
    asked: list[bytes] = []

    def parent(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            writer.close()

        return serve

    answers = (b"HTTP/1.1 407 No\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nfrom the far end")
    servers = [await asyncio.start_server(parent(answer), "127.0.0.1", 0) for answer in answers]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    stage.parents = [TierUrl.parse(f"http://user:secret@localhost:{port}") for port in ports]
    stage.open()

    answer = await stage.say(b"CONNECT auth.docker.io:443 HTTP/1.1\r\n\r\n")
    denied = await stage.say(b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n")
    stage.parents = stage.parents[:1]
    refused = await stage.say(b"CONNECT auth.docker.io:443 HTTP/1.1\r\n\r\n")

    assert answer == ESTABLISHED + b"from the far end"
    assert asked[1].startswith(b"CONNECT auth.docker.io:443 HTTP/1.1\r\nHost: auth.docker.io:443\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in asked[1]
    assert denied.startswith(b"HTTP/1.1 403 ")
    assert refused.startswith(b"HTTP/1.1 502 ")
    assert b"CONNECT is answered 407" in refused
    assert b"secret" not in refused
    for server in servers:
        server.close()
