"""Who may read what a configured login can read: a registry and its token service on loopback."""

import asyncio
import base64
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.membership import Membership
from tidegate_proxy.registry.public import Readable, Right
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Site
from tidegate_proxy.storage.index import Index
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credentials, Login, Share
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.secret import GivenSecret, Secret
from tidegate_proxy.upstreams.signed_in import SignedIn

TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
BASIC = "Basic " + base64.b64encode(b"robot:pw").decode()
PRIVATE = Repository.parse("team/private")
BY_DIGEST = f"/v2/team/private/manifests/{DIGEST}"
BY_TAG = "/v2/team/private/manifests/1"


@dataclass
class Origin:
    """`team/private` is for robot and for `Bearer own`; anybody may have a token, while `generous`."""

    port: int = 0
    generous: bool = True
    login_reads: bool = True
    limited: bool = False
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        self.seen.append((request.method, request.path, authorization))
        if request.path == "/token":
            if authorization == BASIC:
                return web.json_response({"token": "robots"})
            refused = authorization or not self.generous
            return web.Response(status=401) if refused else web.json_response({"token": "anybodys"})
        readers = {"Bearer own"} | ({"Bearer robots"} if self.login_reads else set())
        if self.limited and authorization == "Bearer robots":
            return web.Response(status=429)
        if (request.path == "/v2/" and authorization.startswith("Bearer")) or authorization in readers:
            headers = {"Docker-Content-Digest": DIGEST, "Content-Type": TYPE}
            missing = request.path.endswith("/none")
            return web.Response(status=404) if missing else web.Response(body=MANIFEST, headers=headers)
        challenge = f'Bearer realm="http://127.0.0.1:{self.port}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})


@dataclass
class World:
    origin: Origin
    site: Site
    upstream: DirectUpstream
    state_dir: Path
    stop_origin: Callable[[], "asyncio.Future[None]"]

    def credentials(self, share: Share) -> Credentials:
        secret = GivenSecret(Secret("pw"), name="test")
        login = Login(registry="r", username="robot", secret=secret, share=share)
        return Credentials([login], clock=time.monotonic)

    async def open(self, parts: AsyncExitStack, credentials: Credentials | None) -> PullThroughCache:
        return await PullThroughCache.open(
            parts,
            state_dir=self.state_dir,
            durability="relaxed",
            stale_max=timedelta(days=1),
            upstream=self.upstream,
            fetch_ended=lambda _: None,
            say=lambda _: None,
            credentials=credentials,
        )

    async def ask(
        self, cache: PullThroughCache, path: str, method: str = "GET", authorization: str = ""
    ) -> Answer:
        headers = CIMultiDict({"Accept": TYPE})
        if authorization:
            headers["Authorization"] = authorization
        return await cache.service.answer(
            Incoming(site=self.site, method=method, target=path, headers=CIMultiDictProxy(headers))
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    origin = Origin()
    server = web.Server(origin.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    origin.port = listening.sockets[0].getsockname()[1]

    async def resolve(host: str) -> list[str]:
        return [host]

    async def stop() -> None:
        listening.close()
        await server.shutdown(0.05)

    upstream = DirectUpstream(
        resolver=NameResolver(resolve),
        exempt=lambda _: None,
        tls=ssl.create_default_context(),
        look_every_s=0.05,
    )
    yield World(
        origin=origin,
        site=Site(registry="r", host="127.0.0.1", port=origin.port, scheme="http"),
        upstream=upstream,
        state_dir=tmp_path,
        stop_origin=stop,
    )
    await upstream.close()
    await stop()


async def test_what_a_shared_login_reads_everybody_reads(world: World) -> None:
    """C17, I6: cold, from the cache, at hand; with the client's own token, none, or one that may nothing."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))

        answers = [await world.ask(cache, BY_TAG), await world.ask(cache, BY_DIGEST)]
        answers.append(await world.ask(cache, BY_DIGEST, authorization="Bearer anybodys"))

        assert [answer.cache for answer in answers] == [Cache.MISS, Cache.HIT, Cache.HIT]
        assert cache.service.at_hand(world.site, "GET", BY_DIGEST) is not None
        tokens = [authorization for _, path, authorization in world.origin.seen if path == "/token"]
        assert tokens.count(BASIC) == 1
        registry = [authorization for _, path, authorization in world.origin.seen if path != "/token"]
        assert not any(authorization.startswith("Basic") for authorization in registry)


@pytest.mark.parametrize("share", [Share.NOBODY, None])
async def test_what_was_shared_once_is_not_served_by_that_any_more(world: World, share: Share | None) -> None:
    """C15, C17, I6: the proof was for the login's sharing, not for the bytes: one's own right counts now."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))
        await world.ask(cache, BY_TAG)
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(share) if share else None)
        world.origin.seen.clear()

        for path in (BY_TAG, BY_DIGEST):
            assert (await world.ask(cache, path)).status == 401
            own = await world.ask(cache, path, authorization="Bearer own")
            assert (own.status, own.cache) == (200, Cache.REVALIDATED if path == BY_TAG else Cache.HIT)
            assert (await world.ask(cache, path, authorization="Bearer anybodys")).status == 401
        assert cache.service.at_hand(world.site, "GET", BY_DIGEST) is None


async def test_a_proof_is_believed_for_an_hour_and_falls_with_the_right(world: World) -> None:
    """C15, C17, I6: asked again after it, refused from then on; while dark the last verdict stands."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    index = Index.open(world.state_dir / "index.sqlite")
    credentials = world.credentials(Share.NODE)
    monotonic = [0.0]
    signed_in = SignedIn(world.upstream, credentials, clock=lambda: monotonic[0])
    readable = Readable(
        anonymous=Anonymous(world.upstream, clock=lambda: monotonic[0]),
        signed_in=signed_in,
        credentials=credentials,
        index=index,
        membership=Membership(index),
        now=lambda: now[0],
        patience_s=5,
    )

    async def right() -> Right | None:
        return await readable.by_everyone(world.site, PRIVATE, BY_TAG)

    assert await right() is Right.SHARED
    world.origin.seen.clear()
    world.origin.login_reads = False
    now[0] += timedelta(minutes=59)
    assert await right() is Right.SHARED
    assert world.origin.seen == []
    assert readable.known(world.site, PRIVATE)
    now[0] += timedelta(minutes=2)
    assert not readable.known(world.site, PRIVATE)
    assert await right() is None
    world.origin.login_reads = True
    now[0] += timedelta(minutes=2)
    monotonic[0] += 120
    assert await right() is Right.SHARED
    await world.stop_origin()
    now[0] += timedelta(hours=2)
    assert await right() is Right.SHARED
    assert await readable.by_everyone(world.site, Repository.parse("team/other"), BY_TAG) is None
    await readable.close()
    await signed_in.close()
    await index.close()


async def test_a_ping_keeps_its_challenge_where_anybody_can_meet_it(world: World) -> None:
    """C16, C17: or clients would not log in for a push, or for what is theirs alone."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))

        assert (await world.ask(cache, "/v2/")).status == 401
    world.origin.generous = False
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))

        assert (await world.ask(cache, "/v2/")).status == 200
        assert (await world.ask(cache, "/v2/", authorization="Basic d3Jvbmc6")).status == 401
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NOBODY))

        assert (await world.ask(cache, "/v2/")).status == 401


async def test_a_write_is_never_made_in_the_logins_name(world: World) -> None:
    """C17, C18: the client gets the challenge and logs in, or does not."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))
        await world.ask(cache, BY_TAG)
        world.origin.seen.clear()

        for method, path in (
            ("PUT", BY_TAG),
            ("DELETE", BY_DIGEST),
            ("POST", "/v2/team/private/blobs/uploads/"),
            ("GET", "/v2/team/private/blobs/uploads/1"),
            ("GET", "/v2/_catalog"),
        ):
            answer = await world.ask(cache, path, method)
            assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, True)
        assert {authorization for _, _, authorization in world.origin.seen} == {""}


async def test_reads_that_are_not_for_the_cache_use_the_shared_login_last(world: World) -> None:
    """C16, C17: the client's own login decides where it suffices; a 404 is told as one."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))
        tags = "/v2/team/private/tags/list"

        assert (await world.ask(cache, tags, authorization="Bearer own")).status == 200
        assert "Bearer robots" not in {authorization for _, _, authorization in world.origin.seen}
        assert (await world.ask(cache, tags, authorization="Bearer anybodys")).status == 200
        assert (await world.ask(cache, tags)).status == 200
        assert (await world.ask(cache, "/v2/team/private/manifests/none")).status == 404


async def test_a_login_at_its_limit_is_not_the_end(world: World) -> None:
    """C17, C19, I1: the client's own login may have some left; what is cached is served otherwise."""
    async with AsyncExitStack() as parts:
        cache = await world.open(parts, world.credentials(Share.NODE))
        await world.ask(cache, BY_TAG)
        world.origin.limited = True

        assert (await world.ask(cache, BY_TAG)).cache is Cache.STALE
        assert (await world.ask(cache, BY_TAG, authorization="Bearer own")).cache is Cache.REVALIDATED
