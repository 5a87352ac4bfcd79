"""Registry semantics over a real HTTP origin on loopback: what is cached, for whom, what passes through."""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Site
from tidegate_proxy.storage.store import DigestMismatch
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER = bytes(range(256)) * 1024


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest_of(LAYER),
                "size": len(LAYER),
            }
        ],
    }
).encode()


@dataclass
class Origin:
    """A registry with a token service: `lib/public` gives tokens to anyone, `lib/private` to nobody."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    tag: bytes = MANIFEST
    blob: bytes = LAYER
    failing: int = 0
    redirect_to: str = ""
    silent: bool = False
    port: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        while self.silent:
            await asyncio.sleep(0.01)
        if request.path == "/token":
            return web.json_response({"token": "anonymous", "expires_in": 300})
        self.requests.append((request.method, request.path))
        self.authorizations.append(request.headers.get("Authorization"))
        if self.failing:
            return web.Response(status=self.failing, text="failing")
        if request.path.startswith("/elsewhere/"):
            return web.Response(body=self.blob)
        wanted = "Bearer anonymous" if request.path.startswith("/v2/lib/public/") else "Bearer user"
        if request.headers.get("Authorization") not in (wanted, "Bearer user"):
            challenge = f'Bearer realm="http://127.0.0.1:{self.port}/token",service="test"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.path == "/v2/":
            return web.Response(text="{}")
        if "/manifests/" in request.path:
            headers = {"Docker-Content-Digest": digest_of(self.tag), "Content-Type": MANIFEST_TYPE}
            if request.path.startswith("/v2/lib/public/manifests/gone"):
                return web.Response(status=404, text="gone")
            return web.Response(body=self.tag, headers=headers)
        if self.redirect_to:
            return web.Response(status=307, headers={"Location": self.redirect_to})
        return web.Response(body=self.blob, headers={"Content-Type": "application/octet-stream"})


@dataclass
class World:
    cache: PullThroughCache
    origin: Origin
    site: Site
    stop_origin: Callable[[], "asyncio.Future[None]"]
    offline: list[str]

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
        return await self.cache.service.answer(
            Incoming(site=self.site, method=method, target=path, headers=CIMultiDictProxy(fields))
        )


async def read(answer: Answer) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    return b"".join([bytes(piece) async for piece in answer.body])


@pytest.fixture
def pushes() -> bool:
    return True


@pytest.fixture
async def world(tmp_path: Path, pushes: bool) -> AsyncIterator[World]:
    origin = Origin()
    server = web.Server(origin.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    origin.port = listening.sockets[0].getsockname()[1]
    offline = [""]

    async def resolve(host: str) -> list[str]:
        return [host]

    async def stop() -> None:
        listening.close()
        await server.shutdown(0.05)

    async with AsyncExitStack() as parts:
        upstream = DirectUpstream(
            resolver=NameResolver(resolve),
            exempt=lambda _: None,
            tls=ssl.create_default_context(),
            offline=lambda _: offline[0],
            look_every_s=0.05,
        )
        parts.push_async_callback(upstream.close)
        cache = await PullThroughCache.open(
            parts,
            state_dir=tmp_path / "state",
            durability="relaxed",
            stale_max=timedelta(days=1),
            upstream=upstream,
            fetch_ended=lambda _: None,
            say=lambda _: None,
            pushes=pushes,
        )
        site = Site(registry="test", host="127.0.0.1", port=origin.port, scheme="http")
        yield World(cache, origin, site, stop, offline)
        await stop()


async def test_a_public_blob_is_fetched_once_and_then_served_without_asking(world: World) -> None:
    """C2, C3: one upstream GET, then hits, byte for byte."""
    path = f"/v2/lib/public/blobs/{digest_of(LAYER)}"
    cold = await world.ask(path)
    assert (cold.cache, await read(cold)) == (Cache.MISS, LAYER)
    await until_stored(world, digest_of(LAYER))
    asked = len(world.origin.requests)

    warm = await world.ask(path)
    assert (warm.cache, await read(warm)) == (Cache.HIT, LAYER)
    assert len(world.origin.requests) == asked


async def test_what_is_at_hand_is_a_hit_that_counts_as_a_use(world: World) -> None:
    """C4, C14: a manifest by digest is at hand from its first hit on, and eviction hears of each use."""
    path, digest = f"/v2/lib/public/manifests/{digest_of(MANIFEST)}", Digest.parse(digest_of(MANIFEST))
    for at_hand_by_now in (False, False, True):
        before = datetime.now(UTC)
        ready = world.cache.service.at_hand(world.site, "GET", path)

        assert (ready is not None) == at_hand_by_now
        if ready is None:
            await read(await world.ask(path))
        else:
            entry = await world.cache.index.catalogue.entry(digest)
            assert entry is not None
            assert ready.body == MANIFEST
            assert entry.manifest
            assert entry.last_use >= before


async def test_a_head_of_a_blob_never_becomes_a_download(world: World) -> None:
    """C9: HEAD is answered from metadata, cold and warm."""
    path = f"/v2/lib/public/blobs/{digest_of(LAYER)}"
    cold = await world.ask(path, "HEAD")
    assert (cold.status, cold.headers["Content-Length"], cold.body) == (200, str(len(LAYER)), b"")
    assert all(method == "HEAD" for method, _ in world.origin.requests)

    await read(await world.ask(path))
    await until_stored(world, digest_of(LAYER))
    warm = await world.ask(path, "HEAD")
    assert (warm.cache, warm.headers["Content-Length"], warm.body) == (Cache.HIT, str(len(LAYER)), b"")


async def test_a_head_of_an_unknown_digest_is_asked_in_a_name_that_may(world: World) -> None:
    """C9, T1: a node asks its central tier without a token of its own, and must not be refused for that."""
    cold = await world.ask(f"/v2/lib/public/manifests/{digest_of(MANIFEST)}", "HEAD")
    assert (cold.status, cold.headers["Content-Length"], cold.body) == (200, str(len(MANIFEST)), b"")
    assert all(method == "HEAD" for method, _ in world.origin.requests)

    assert (await world.ask(f"/v2/lib/private/manifests/{digest_of(MANIFEST)}", "HEAD")).status == 401


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=500-1499", 206, LAYER[500:1500]),
        ("bytes=500-", 206, LAYER[500:]),
        ("bytes=-500", 206, LAYER[-500:]),
        (f"bytes={len(LAYER)}-", 416, b""),
        ("bytes=0-1,5-6", 200, LAYER),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
async def test_ranges_are_served_on_a_miss_and_on_a_hit(
    world: World, asked: str, status: int, expected: bytes, warm: bool
) -> None:
    """C10: single ranges as RFC 9110 has them."""
    path = f"/v2/lib/public/blobs/{digest_of(LAYER)}"
    if warm:
        await read(await world.ask(path))
        await until_stored(world, digest_of(LAYER))

    answer = await world.ask(path, Range=asked)
    assert answer.status == status
    assert await read(answer) == expected


async def test_a_manifest_by_digest_has_the_type_it_came_with(world: World) -> None:
    """C4: known by its tag before; a client that is told another type refuses it."""
    await world.ask("/v2/lib/public/manifests/latest")
    by_digest = await world.ask(f"/v2/lib/public/manifests/{digest_of(MANIFEST)}")

    assert (by_digest.cache, by_digest.headers["Content-Type"]) == (Cache.HIT, MANIFEST_TYPE)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_tag_that_was_written_through_us_is_what_it_was_no_longer(world: World, method: str) -> None:
    """C5, C7, C18: nothing stale is served of it, also while the registry is dark."""
    await world.ask("/v2/lib/public/manifests/latest")
    await read(await world.ask("/v2/lib/public/manifests/latest", method, Authorization="Bearer user"))
    await world.stop_origin()

    with pytest.raises(UpstreamUnreachable):
        await world.ask("/v2/lib/public/manifests/latest")


@pytest.mark.parametrize("warm", [False, True])
async def test_a_range_of_something_else_is_the_whole(world: World, warm: bool) -> None:
    """C10: If-Range names what the client has a part of (RFC 9110, 13.1.5)."""
    path = f"/v2/lib/public/blobs/{digest_of(LAYER)}"
    if warm:
        await read(await world.ask(path))
        await until_stored(world, digest_of(LAYER))

    other = await world.ask(path, Range="bytes=1-9", If_Range='"another"')
    same = await world.ask(path, Range="bytes=1-9", If_Range=f'"{digest_of(LAYER)}"')

    assert (other.status, await read(other)) == (200, LAYER)
    assert (same.status, await read(same)) == (206, LAYER[1:10])


async def test_a_redirect_to_another_host_is_followed_without_the_clients_credentials(world: World) -> None:
    """C8: Authorization is dropped across origins."""
    world.origin.redirect_to = f"http://localhost:{world.origin.port}/elsewhere/blob"
    answer = await world.ask(f"/v2/lib/public/blobs/{digest_of(LAYER)}", Authorization="Bearer user")
    assert await read(answer) == LAYER

    elsewhere = [
        authorization
        for (_, path), authorization in zip(world.origin.requests, world.origin.authorizations, strict=True)
        if path.startswith("/elsewhere/")
    ]
    assert set(elsewhere) == {None}


async def test_a_private_repository_is_served_to_those_with_a_right_alone(world: World) -> None:
    """C15, I6: what needs a login is stored, and not served to anyone else."""
    path = f"/v2/lib/private/blobs/{digest_of(LAYER)}"
    mine = await world.ask(path, Authorization="Bearer user")
    assert (mine.cache, await read(mine)) == (Cache.MISS, LAYER)
    await until_stored(world, digest_of(LAYER))

    again = await world.ask(path, Authorization="Bearer user")
    assert (again.cache, await read(again)) == (Cache.HIT, LAYER)
    for theirs in (await world.ask(path), await world.ask(path, Authorization="Bearer other")):
        assert (theirs.status, theirs.cache) == (401, Cache.BYPASS)


async def test_a_blob_cached_from_a_public_repository_is_not_served_under_a_private_one(world: World) -> None:
    """C15, I6: the store is shared, the right to read it is not."""
    await read(await world.ask(f"/v2/lib/public/blobs/{digest_of(LAYER)}"))
    await until_stored(world, digest_of(LAYER))

    assert (await world.ask(f"/v2/lib/private/blobs/{digest_of(LAYER)}")).status == 401


async def test_wrong_bytes_never_complete_and_never_enter_the_store(world: World) -> None:
    """C3, I2: also when the repository is private and the bytes only pass through."""
    world.origin.blob = LAYER[:-1] + b"!"
    for repository in ("public", "private"):
        answer = await world.ask(
            f"/v2/lib/{repository}/blobs/{digest_of(LAYER)}", Authorization="Bearer user"
        )
        with pytest.raises(DigestMismatch):
            await read(answer)
    assert not list(await stored(world))


async def test_a_moved_tag_is_seen_by_one_head(world: World) -> None:
    """C4, C6: an unchanged tag costs a HEAD, a moved one is fetched."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    world.origin.requests.clear()
    same = await world.ask("/v2/lib/public/manifests/latest")
    assert (same.cache, await read(same)) == (Cache.REVALIDATED, MANIFEST)
    assert world.origin.requests == [("HEAD", "/v2/lib/public/manifests/latest")]

    world.origin.tag = MANIFEST + b"\n"
    moved = await world.ask("/v2/lib/public/manifests/latest")
    assert (moved.cache, await read(moved)) == (Cache.MISS, MANIFEST + b"\n")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_registry_leaves_the_cached_tag_in_place(world: World, status: int) -> None:
    """C7: stale if error, marked."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    world.origin.failing = status

    stale = await world.ask("/v2/lib/public/manifests/latest")
    assert (stale.cache, await read(stale)) == (Cache.STALE, MANIFEST)
    assert (await world.ask("/v2/")).status == 200


async def test_a_dark_registry_serves_public_content_without_a_token(world: World) -> None:
    """C7: the ping needs no login while nobody could log in; an image cached before is served whole."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    await read(await world.ask(f"/v2/lib/public/blobs/{digest_of(LAYER)}"))
    await until_stored(world, digest_of(LAYER))
    assert (await world.ask("/v2/")).status == 401
    await world.stop_origin()

    assert (await world.ask("/v2/")).status == 200
    assert (await world.ask("/v2/lib/public/manifests/latest")).cache == Cache.STALE
    assert (await world.ask(f"/v2/lib/public/manifests/{digest_of(MANIFEST)}")).cache == Cache.HIT
    assert await read(await world.ask(f"/v2/lib/public/blobs/{digest_of(LAYER)}")) == LAYER
    with pytest.raises(UpstreamUnreachable):
        await world.ask("/v2/lib/private/manifests/latest", Authorization="Bearer user")


async def test_a_silent_registry_is_waited_for_once_and_noticed_when_it_is_back(world: World) -> None:
    """C7: an offline pull is not a slow pull, and the challenge is back soon after the registry."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    world.origin.silent = True
    assert (await world.ask("/v2/")).status == 200
    async with asyncio.timeout(1):  # a second patience would take 2 s
        assert (await world.ask("/v2/")).status == 200
        assert (await world.ask("/v2/lib/public/manifests/latest")).cache == Cache.STALE

    world.origin.silent = False
    async with asyncio.timeout(5):
        while (await world.ask("/v2/")).status != 401:
            await asyncio.sleep(0.01)


async def test_nothing_is_asked_while_no_name_resolves(world: World) -> None:
    """C7: a kept connection might answer, but the client could not reach the token service it names."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    world.origin.requests.clear()
    world.offline[0] = "no resolver answers"

    assert (await world.ask("/v2/")).status == 200
    assert (await world.ask("/v2/lib/public/manifests/latest")).cache == Cache.STALE
    assert world.origin.requests == []


async def test_a_tag_seen_by_head_can_be_served_once_its_manifest_was_pulled_by_digest(world: World) -> None:
    """C7: containerd's way: HEAD by tag, GET by digest, and then the registry goes dark."""
    await world.ask("/v2/lib/public/manifests/latest", "HEAD")
    await read(await world.ask(f"/v2/lib/public/manifests/{digest_of(MANIFEST)}"))
    await world.stop_origin()

    assert (await world.ask("/v2/lib/public/manifests/latest", "HEAD")).cache == Cache.STALE


async def test_a_tag_is_only_served_in_a_media_type_that_the_client_accepts(world: World) -> None:
    """C4: the variants of a tag are kept apart."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))
    await world.stop_origin()

    docker = "application/vnd.docker.distribution.manifest.v2+json"
    assert (
        await world.ask("/v2/lib/public/manifests/latest", Accept=f"{docker}, {MANIFEST_TYPE}")
    ).status == 200
    with pytest.raises(UpstreamUnreachable):
        await world.ask("/v2/lib/public/manifests/latest", Accept=docker)


async def test_a_tag_that_is_gone_upstream_is_gone_here(world: World) -> None:
    """C6: a 404 is the registry's word and is passed on."""
    await read(await world.ask("/v2/lib/public/manifests/latest"))

    answer = await world.ask("/v2/lib/public/manifests/gone", Authorization="Bearer user")
    assert answer.status == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [("/v2/../manifests/x", "NAME_INVALID"), ("/v2/lib/public/blobs/sha256:XY", "DIGEST_INVALID")],
)
async def test_malformed_paths_are_refused_with_the_codes_of_the_specification(
    world: World, path: str, code: str
) -> None:
    """N6: hostile paths do not reach the registry."""
    answer = await world.ask(path)
    assert json.loads(await read(answer))["errors"][0]["code"] == code
    assert world.origin.requests == []


async def stored(world: World) -> list[Path]:
    root = world.cache.store.blobs
    return [path for path in root.rglob("*") if path.is_file()]


async def until_stored(world: World, digest: str) -> None:
    async with asyncio.timeout(5):
        while not any(path.name == digest.removeprefix("sha256:") for path in await stored(world)):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/lib/public/blobs/uploads/"),
        ("GET", "/v2/lib/public/blobs/uploads/1"),
        ("PUT", "/v2/lib/public/manifests/1"),
        ("DELETE", f"/v2/lib/public/blobs/{digest_of(LAYER)}"),
    ],
)
@pytest.mark.parametrize("pushes", [False, True])
async def test_pushes_that_are_switched_off_never_reach_the_registry(
    world: World, pushes: bool, method: str, path: str
) -> None:
    """T1: refused in the specification's words, also where a bug would pass it through; reads go on."""
    incoming = Incoming(site=world.site, method=method, target=path, headers=CIMultiDictProxy(CIMultiDict()))
    answers = [await world.ask(path, method), await world.cache.service.pass_through(incoming)]

    if pushes:
        assert (method, path) in world.origin.requests
        return
    for answer in answers:
        assert answer.status == 405
        assert json.loads(await read(answer))["errors"][0]["code"] == "UNSUPPORTED"
    assert world.origin.requests == []
    assert (await world.ask("/v2/lib/public/manifests/1")).status == 200
