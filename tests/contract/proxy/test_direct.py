"""Requests straight to a registry on real sockets: what a write needs that a read does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Origin:
    """A registry's web server that remembers each request's method, connection and framing."""

    def __init__(self) -> None:
        self.answer: Answering = self._created
        self.met: list[tuple[str, object, str | None]] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.met.append((request.method, peer, request.headers.get("Content-Length")))
        return await self.answer(request)

    async def _created(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=201, text=str(len(await request.read())))


@pytest.fixture
async def origin() -> Origin:
    return Origin()


@pytest.fixture
async def site(origin: Origin) -> AsyncIterator[Site]:
    server = web.Server(origin.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield Site(registry="local", host="registry.test", port=port, scheme="http")
    listening.close()
    await server.shutdown(0.01)


@pytest.fixture
async def upstream() -> AsyncIterator[DirectUpstream]:
    async def addresses(_host: str) -> list[str]:
        return ["127.0.0.1"]

    upstream = DirectUpstream(
        resolver=NameResolver(addresses),
        exempt=lambda _sock: None,
        tls=ssl.create_default_context(),
        idle_timeout_s=0.1,
        write_timeout_s=5,
    )
    yield upstream
    await upstream.close()


async def pieces(*some: bytes) -> AsyncIterator[bytes]:
    for piece in some:
        yield piece


async def test_a_registry_may_take_long_to_acknowledge_a_layer(
    origin: Origin, site: Site, upstream: DirectUpstream
) -> None:
    """C18: longer than an answer to a read may pause."""

    async def slowly(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(0.3)
        return web.Response(status=201)

    origin.answer = slowly
    response = await upstream.request(site, "PUT", "/v2/a/blobs/uploads/1", {}, body=pieces(b"layer"))

    assert response.status == 201
    await response.close()


async def test_a_write_does_not_meet_a_connection_that_is_closing(
    origin: Origin, site: Site, upstream: DirectUpstream
) -> None:
    """C18: each write has a connection of its own; reads share theirs."""
    for method in ("GET", "POST", "GET", "PATCH", "PUT"):
        body = None if method == "GET" else pieces(b"la", b"yer")
        response = await upstream.request(site, method, "/v2/", {}, body=body)
        await response.read(100)
        await response.close()

    peers = {method: peer for method, peer, _ in origin.met}
    assert len(set(peers.values())) == 4
    assert origin.met[0][1] == origin.met[2][1]


@pytest.mark.parametrize("length", ["5", None], ids=["monolithic", "chunked"])
async def test_a_body_is_framed_as_the_client_framed_it(
    origin: Origin, site: Site, upstream: DirectUpstream, length: str | None
) -> None:
    """C18: a registry sees the length that the client told, or none."""
    headers = {} if length is None else {"Content-Length": length}
    response = await upstream.request(site, "PATCH", "/v2/", headers, body=pieces(b"la", b"yer"))

    assert await response.read(100) == b"5"
    assert [met[2] for met in origin.met] == [length]
    await response.close()
