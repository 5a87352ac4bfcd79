"""Tiers in front of a registry, on real sockets: what a pull gets when one of them misbehaves.

The cache, the token flow and healing are the real ones; the clock of patience runs ten times as fast.
"""

import asyncio
import hashlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from contract.proxy.scripted_tier import Manner, ScriptedTier
from lab.pki import Authority
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Site
from tidegate_proxy.storage.store import DigestMismatch
from tidegate_proxy.upstreams.central import CentralCarrier
from tidegate_proxy.upstreams.connect import ConnectCarrier
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.rendezvous import ranked
from tidegate_proxy.upstreams.tier import Tier
from tidegate_proxy.upstreams.tier_url import TierUrl
from tidegate_proxy.upstreams.tiers import Member, Tiers
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

PATIENCE_S = 0.3
HOST = "registry.test"
LAYER = bytes(range(256)) * 4096
MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


BLOB_PATH = f"/v2/library/thing/blobs/{digest_of(LAYER)}"
MANIFEST_PATH = f"/v2/library/thing/manifests/{digest_of(MANIFEST)}"
TAG_PATH = "/v2/library/thing/manifests/latest"
CONTENTS = {BLOB_PATH: LAYER, MANIFEST_PATH: MANIFEST, TAG_PATH: MANIFEST}
Until = Callable[[Callable[[], object]], Awaitable[None]]


@dataclass
class Registry:
    """A public registry that wants a token of everybody; alice may read what is private."""

    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=lambda: dict(CONTENTS))
    resumed_at: list[int] = field(default_factory=list)
    port: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        self.requests.append((request.method, request.path, authorization))
        if request.path == "/token":
            return web.json_response({"token": "anonymous", "expires_in": 300})
        wanted = ("Bearer alice",) if "/private/" in request.path else ("Bearer alice", "Bearer anonymous")
        if authorization not in wanted:
            challenge = f'Bearer realm="https://{HOST}:{self.port}/token",service="test"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.path == "/v2/":
            return web.Response(text="{}")
        if "/manifests/" in request.path and "sha256:" not in request.path:
            headers = {"Docker-Content-Digest": digest_of(MANIFEST), "Content-Type": MANIFEST_TYPE}
            return web.Response(body=MANIFEST, headers=headers)
        content = self.contents.get(request.path.replace("/private/", "/library/"))
        if content is None:
            return web.Response(status=404)
        if start := request.http_range.start:
            self.resumed_at.append(start)
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return web.Response(status=206, body=content[start:], headers=headers)
        return web.Response(body=content, headers={"Content-Type": MANIFEST_TYPE})

    def asked_for(self, path: str, method: str = "GET") -> list[str | None]:
        """The Authorization of each such request."""
        return [given for how, what, given in self.requests if (how, what) == (method, path)]


@dataclass
class World:
    """A registry, what stands in front of it, and a cache that pulls."""

    folder: Path
    parts: AsyncExitStack
    registry: Registry
    site: Site
    bundle: Path
    tls: ssl.SSLContext
    stop_registry: Callable[[], Awaitable[None]]
    tiers: list[ScriptedTier] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    states: Iterator[int] = field(default_factory=itertools.count)

    def tier(self, manner: Manner) -> ScriptedTier:
        folder = self.folder / f"tier{len(self.tiers)}"
        folder.mkdir()
        tier = ScriptedTier(manner, folder, CONTENTS)
        self.tiers.append(tier)
        self.parts.callback(tier.close)
        return tier

    def connect(self, tier: ScriptedTier, *, login: str = "", ca: Path | None = None) -> Tier:
        url = TierUrl.parse(tier.url.replace("://", f"://{login}@") if login else tier.url)
        carrier = ConnectCarrier(
            url,
            system=self.bundle,
            ca=ca or self.pin_of(tier),
            pin=ca is None,
            resolver=NameResolver(self.resolve),
            exempt=lambda _: None,
        )
        return self._opened(Tier(carrier, look_every_s=0.02))

    def central(self, tier: ScriptedTier, *, login: str = "", client: Path | None = None) -> Tier:
        ca = self.folder / f"central-{tier.port}.pem"
        ca.write_bytes(tier.authority.anchor)
        carrier = CentralCarrier(
            TierUrl.parse(tier.url.replace("://", f"://{login}@") if login else tier.url),
            system=self.bundle,
            ca=ca,
            certificate=client,
            key=client,
            elsewhere=self.tls,
            resolver=NameResolver(self.resolve),
            exempt=lambda _: None,
        )
        return self._opened(Tier(carrier, look_every_s=0.02))

    def pin_of(self, tier: ScriptedTier) -> Path:
        return self.folder / "upstreams" / f"127.0.0.1-{tier.port}.pem"

    def direct(self) -> DirectUpstream:
        upstream = DirectUpstream(
            resolver=NameResolver(self.resolve), exempt=lambda _: None, tls=self.tls, look_every_s=0.02
        )
        self.parts.push_async_callback(upstream.close)
        return upstream

    def _opened(self, tier: Tier) -> Tier:
        self.parts.push_async_callback(tier.close)
        return tier

    async def resolve(self, host: str) -> list[str]:
        self.names.append(host)
        return ["127.0.0.1"]

    async def cache(self, *members: Member) -> "Node":
        tiers = Tiers(members, patience_s=PATIENCE_S)
        cache = await PullThroughCache.open(
            self.parts,
            state_dir=self.folder / f"state{next(self.states)}",
            durability="relaxed",
            stale_max=timedelta(days=1),
            upstream=tiers,
            fetch_ended=tiers.fetched,
            say=lambda _: None,
        )
        return Node(self, tiers, cache)


@dataclass
class Node:
    """The cache under test and the upstreams that it has."""

    world: World
    tiers: Tiers
    cache: PullThroughCache

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        fields = CIMultiDictProxy(CIMultiDict(headers))
        return await self.cache.service.answer(
            Incoming(site=self.world.site, method=method, target=path, headers=fields)
        )

    async def read(self, path: str, **headers: str) -> bytes:
        answer = await self.ask(path, **headers)
        assert answer.status == 200, answer
        if isinstance(answer.body, bytes):
            return answer.body
        return b"".join([bytes(piece) async for piece in answer.body])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    internet = Authority("The internet")
    bundle, identity = tmp_path / "bundle.pem", tmp_path / "registry.pem"
    bundle.write_bytes(internet.anchor)
    leaf = internet.server([HOST, "blobs.test"])
    identity.write_bytes(leaf.certificate + leaf.key)
    registry = Registry()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    server = web.Server(registry.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    registry.port = listening.sockets[0].getsockname()[1]

    async def stop() -> None:
        listening.close()
        await server.shutdown(0.05)

    async with AsyncExitStack() as parts:
        yield World(
            folder=tmp_path,
            parts=parts,
            registry=registry,
            site=Site(registry="test", host=HOST, port=registry.port),
            bundle=bundle,
            tls=ssl.create_default_context(cafile=bundle),
            stop_registry=stop,
        )
    await stop()


async def test_a_miss_goes_through_an_intercepting_proxy_whose_ca_is_pinned_at_the_first_use(
    world: World,
) -> None:
    """T2: docker-registry-proxy's way; the CA is trusted for the tier alone, names resolve there."""
    tier = world.tier("intercepts")
    node = await world.cache(world.connect(tier), world.direct())

    assert await node.read(BLOB_PATH) == LAYER

    assert tier.paths == [BLOB_PATH]
    assert world.registry.asked_for(BLOB_PATH) == []
    assert world.pin_of(tier).read_bytes() == tier.authority.anchor
    assert node.tiers.requests[("connect", "2xx")] == 1


@pytest.mark.parametrize("offered", [(400, b"Bad Request"), (200, b"<html>Welcome</html>")])
async def test_a_proxy_that_does_not_intercept_needs_no_ca(world: World, offered: tuple[int, bytes]) -> None:
    """T9: what it answers at /ca.crt is no certificate, and the registry's own is verified."""
    tier = world.tier("tunnels")
    tier.offers = offered
    node = await world.cache(world.connect(tier))

    assert await node.read(BLOB_PATH) == LAYER

    assert set(tier.connects) == {f"{HOST}:{world.registry.port}"}
    assert not world.pin_of(tier).exists()
    assert world.names == []


async def test_a_proxy_is_told_its_login_and_nobody_else_is(world: World) -> None:
    """T8: Proxy-Authorization goes to the proxy alone."""
    tier = world.tier("tunnels")
    tier.offers = (404, b"")
    member = world.connect(tier, login="node:s3cret")
    node = await world.cache(member)

    await node.read(BLOB_PATH)

    told = [seen.headers.get("proxy-authorization") for seen in tier.seen if seen.method == "CONNECT"]
    assert set(told) == {"Basic bm9kZTpzM2NyZXQ="}
    assert "s3cret" not in f"{member.url} {member.failing}"


async def test_a_changed_ca_is_refused_until_the_pin_is_removed(world: World, until: Until) -> None:
    """T2: pulls go on by the next upstream, status says what to type, and no restart is needed."""
    tier = world.tier("intercepts")
    member = world.connect(tier)
    node = await world.cache(member, world.direct())
    assert await node.read(MANIFEST_PATH) == MANIFEST
    tier.renew_authority()
    tier.drop_connections()

    assert await node.read(BLOB_PATH) == LAYER
    assert world.registry.asked_for(BLOB_PATH) != []
    assert f"its CA is not the one that was pinned in {world.pin_of(tier)}" in member.failing
    assert f"rm {world.pin_of(tier)}" in member.failing
    looks = len(tier.connects)
    await until(lambda: len(tier.connects) > looks + 2)
    assert member.dark(world.site)

    world.pin_of(tier).unlink()
    await until(lambda: not member.failing)
    assert world.pin_of(tier).read_bytes() == tier.authority.anchor


async def test_a_ca_from_a_file_is_not_replaced_by_what_the_proxy_offers(world: World, until: Until) -> None:
    """T2: the operator's file is the word; what it lacks is told with what to type."""
    tier, file = world.tier("intercepts"), world.folder / "given.pem"
    file.write_bytes(Authority("Another").anchor)
    member = world.connect(tier, ca=file)
    node = await world.cache(member, world.direct())

    assert await node.read(BLOB_PATH) == LAYER
    assert tier.paths == []
    assert f"curl -o {file} {tier.url}/ca.crt" in member.failing

    file.write_bytes(tier.authority.anchor)
    await until(lambda: not member.failing)


FAULTS: list[dict[str, int]] = [
    {"connect_status": 407},
    {"hangs_before_head": True},
    {"hangs_after": 1000},
    {"cuts_after": 1000},
    {"status": 401},
    {"status": 403},
    {"status": 404},
    {"status": 429},
    {"status": 500},
    {"status": 503},
]


@pytest.mark.parametrize("manner", ["intercepts", "mirrors"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_whatever_a_tier_does_the_pull_ends_well(
    world: World, manner: Manner, fault: dict[str, int], until: Until
) -> None:
    """I1, I2, C12, T6: the registry gives what the tier does not; a body is resumed where it stopped."""
    tier = world.tier(manner)
    node = await world.cache(_member(world, tier), world.direct())
    tier.behave(**fault)

    async with asyncio.timeout(5):
        assert await node.read(BLOB_PATH, Authorization="Bearer anonymous") == LAYER
    if fault.get("status", 500) >= 429 or manner == "mirrors":
        await until(
            lambda: node.cache.store.blob(Digest.parse(digest_of(LAYER)))
        )  # no detour around the cache

    if "hangs_after" in fault:
        assert world.registry.resumed_at == [1000]


@pytest.mark.parametrize("manner", ["intercepts", "mirrors"])
async def test_a_dead_tier_costs_nothing_and_is_noticed_when_it_is_back(
    world: World, manner: Manner, until: Until
) -> None:
    """I1, T6, T10: at the start and later."""
    tier = world.tier(manner)
    tier.close()
    member = _member(world, tier)
    member.open()
    await until(lambda: member.failing)
    node = await world.cache(member, world.direct())

    assert await node.read(BLOB_PATH) == LAYER
    assert node.tiers.requests[(member.kind, "2xx")] == 0


@pytest.mark.parametrize("manner", ["intercepts", "mirrors"])
async def test_a_hang_is_paid_for_once_and_the_tier_is_used_again_when_it_answers(
    world: World, manner: Manner, until: Until
) -> None:
    """I1, T6: while it is dark nobody turns to it."""
    tier = world.tier(manner)
    member = _member(world, tier)
    node = await world.cache(member, world.direct())
    tier.behave(hangs_before_head=True)
    assert await node.read(MANIFEST_PATH) == MANIFEST
    assert member.dark(world.site)
    asked = len(tier.paths)

    assert await node.read(BLOB_PATH) == LAYER
    assert len(tier.paths) == asked

    tier.behave()
    await until(lambda: not member.dark(world.site))


async def test_a_tag_is_asked_for_elsewhere_while_there_is_time(world: World) -> None:
    """C6, C7: the patience of who has something cached is shared by the upstreams, not spent on the first."""
    tier = world.tier("intercepts")
    node = await world.cache(world.connect(tier), world.direct())
    assert await node.read(TAG_PATH) == MANIFEST
    tier.behave(hangs_before_head=True)

    assert (await node.ask(TAG_PATH)).cache is Cache.REVALIDATED


async def test_bytes_that_a_tier_made_up_end_nowhere_and_are_asked_for_elsewhere_the_next_time(
    world: World,
) -> None:
    """I2: wrong bytes never complete; I1: the client's next try gets the right ones."""
    tier = world.tier("intercepts")
    node = await world.cache(world.connect(tier), world.direct())
    tier.behave(wrong=True)
    with pytest.raises(DigestMismatch):
        await node.read(BLOB_PATH)

    assert await node.read(BLOB_PATH) == LAYER
    assert tier.paths == [BLOB_PATH]


async def test_a_manifest_that_a_tier_made_up_is_asked_for_elsewhere_at_once(world: World) -> None:
    """I1, I2: nothing of it was sent yet, so the client notices nothing."""
    tier = world.tier("intercepts")
    node = await world.cache(world.connect(tier), world.direct())
    tier.behave(wrong=True)

    assert await node.read(MANIFEST_PATH) == MANIFEST
    assert tier.paths == [MANIFEST_PATH]


async def test_redirects_go_through_a_connect_tier_too(world: World) -> None:
    """C8, T2: docker-registry-proxy caches at the blob host; the token stays with the registry."""
    tier = world.tier("intercepts")
    node = await world.cache(world.connect(tier), world.direct())
    elsewhere = f"/blobs/{digest_of(LAYER)}"
    tier.contents = {**CONTENTS, elsewhere: LAYER}
    tier.behave(location=f"https://blobs.test{elsewhere}")

    assert await node.read(BLOB_PATH) == LAYER

    assert [seen.host for seen in tier.seen if seen.target == elsewhere] == ["blobs.test:443"]
    assert [seen.headers.get("authorization") for seen in tier.seen if seen.target == elsewhere] == [None]


async def test_a_central_tier_is_asked_in_the_mirrors_words_and_never_told_our_tokens(world: World) -> None:
    """T3, DESIGN 6: `ns` names the registry; the client's Authorization goes through, ours does not."""
    tier = world.tier("mirrors")
    node = await world.cache(world.central(tier), world.direct())

    await node.read(BLOB_PATH)
    await node.read(MANIFEST_PATH, Authorization="Bearer alice")

    told = [(seen.target, seen.headers.get("authorization")) for seen in tier.seen]
    namespace = f"ns={HOST}%3A{world.registry.port}"
    assert told == [(f"{BLOB_PATH}?{namespace}", None), (f"{MANIFEST_PATH}?{namespace}", "Bearer alice")]


async def test_a_node_proves_itself_to_central_by_its_certificate_or_its_login(world: World) -> None:
    """T8, DESIGN 6: never by the client's header."""
    nodes = Authority("Nodes")
    own, tier = world.folder / "node.pem", world.tier("mirrors")
    leaf = nodes.client("node")
    own.write_bytes(leaf.certificate + leaf.key)
    tier.client_ca = nodes.anchor
    stranger = await world.cache(world.central(tier))
    with pytest.raises(UpstreamUnreachable):
        await stranger.ask(BLOB_PATH)
    assert tier.seen == []

    known = await world.cache(world.central(tier, client=own, login="node:s3cret"))
    assert await known.read(BLOB_PATH) == LAYER
    assert {seen.headers["proxy-authorization"] for seen in tier.seen} == {"Basic bm9kZTpzM2NyZXQ="}


async def test_who_may_read_is_asked_of_the_registry_itself(world: World) -> None:
    """I6: a proxy may answer from a cache that ignores credentials; proofs and private reads pass it by."""
    tier = world.tier("intercepts")
    tier.contents = {**CONTENTS, BLOB_PATH.replace("library", "private"): LAYER}
    node = await world.cache(world.connect(tier), world.direct())

    refused = await node.ask(BLOB_PATH.replace("library", "private"))
    allowed = await node.read(BLOB_PATH.replace("library", "private"), Authorization="Bearer alice")

    assert (refused.status, allowed) == (401, LAYER)
    assert tier.connects == []


async def test_content_flows_while_only_a_tier_can_be_reached(world: World) -> None:
    """C7, T6: the ping asks for no login, for nobody could get one; the tier has what is public."""
    tier = world.tier("mirrors")
    node = await world.cache(world.central(tier), world.direct())
    await world.stop_registry()

    assert (await node.ask("/v2/")).status == 200
    assert await node.read(BLOB_PATH) == LAYER


async def test_without_any_tier_a_denied_registry_is_told_with_what_to_type(world: World) -> None:
    """T6: fallback = "deny"; what is cached is served all the same."""
    tier = world.tier("mirrors")
    node = await world.cache(world.central(tier))
    assert (await node.ask("/v2/")).status == 200
    assert await node.read(MANIFEST_PATH) == MANIFEST
    tier.close()

    assert await node.read(MANIFEST_PATH) == MANIFEST
    with pytest.raises(UpstreamUnreachable) as caught:
        await node.ask(BLOB_PATH)
    assert f"central {tier.url}: " in caught.value.cause
    assert "going direct is denied" in caught.value.cause
    assert 'fallback = "deny"' in caught.value.next_step
    assert world.registry.requests == []


async def test_two_tiers_of_a_kind_share_and_take_over(world: World) -> None:
    """T6: a digest has one home; when that is gone, the other one has it, and going direct stays the last."""
    tiers = [world.tier("mirrors"), world.tier("mirrors")]
    paths = [f"/v2/library/thing/blobs/{digest_of(bytes([at]))}" for at in range(8)]
    for has in (world.registry, *tiers):
        has.contents = {each: bytes([at]) for at, each in enumerate(paths)}
    node = await world.cache(*(world.central(tier) for tier in tiers), world.direct())
    by_url = {tier.url: tier for tier in tiers}

    for at in range(4):
        home = by_url[ranked(digest_of(bytes([at])), list(by_url))[0]]
        assert await node.read(paths[at]) == bytes([at])
        assert home.paths[-1] == paths[at]
    tiers[0].close()
    for at in range(4, 8):
        assert await node.read(paths[at]) == bytes([at])
        assert tiers[1].paths[-1] == paths[at]


def _member(world: World, tier: ScriptedTier) -> Tier:
    return world.central(tier) if tier.url.startswith("https") else world.connect(tier)
