"""Private content (C15, C16; I6): who is served from the cache, by which proofs, and that nobody can tell.

The registry is a real HTTP origin on loopback; the cache is the whole pull-through cache. What cannot be told
apart is shown by its cause: the requests that reach the registry are the same.
"""

import asyncio
import itertools
import json
import random
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.registry.rights import Rights
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.credentials import Credentials, Login, Share
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.secret import GivenSecret, Secret
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable
from unit.proxy.private_origin import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    PrivateOrigin,
    described,
    digest_of,
    manifest_of,
)
from unit.proxy.reader import until

LAYER = bytes(range(256)) * 1024
CONFIG = b'{"of": "alice"}'
MANIFEST = manifest_of(LAYER, config=CONFIG)
UNKNOWN = digest_of(b"nobody ever had this")
P, Q, O = "alice/private", "bob/private", "team/public"  # noqa: E741 - the names that issue and design give them


@dataclass
class World:
    """A registry, and the cache that pulls from it."""

    cache: PullThroughCache
    origin: PrivateOrigin
    site: Site
    clock: list[float]
    stop_origin: Callable[[], Awaitable[None]]

    async def ask(self, path: str, token: str = "", method: str = "GET", **headers: str) -> Answer:
        fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
        if token:
            fields["Authorization"] = f"Basic {token}"
        return await self.cache.service.answer(
            Incoming(site=self.site, method=method, target=f"/v2/{path}", headers=CIMultiDictProxy(fields))
        )

    async def pull(self, repository: str, token: str) -> list[Cache]:
        """As skopeo does: the tag, the config, the layer."""
        caches = []
        for path in ("manifests/1", f"blobs/{digest_of(CONFIG)}", f"blobs/{digest_of(LAYER)}"):
            answer = await self.ask(f"{repository}/{path}", token)
            assert answer.status == 200, (path, answer)
            await read(answer)
            caches.append(answer.cache)
        return caches

    def has(self, content: bytes) -> bool:
        return self.cache.store.blob(Digest.parse(digest_of(content))) is not None


async def read(answer: Answer) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    return b"".join([bytes(piece) async for piece in answer.body])


@pytest.fixture
def share() -> Share | None:
    return None


@pytest.fixture
async def world(tmp_path: Path, share: Share | None) -> AsyncIterator[World]:
    origin = PrivateOrigin(readers={P: {"alice", "carol", "robot"}, Q: {"bob"}})
    origin.holds(P, LAYER)
    origin.holds(P, CONFIG)
    origin.holds(P, MANIFEST, MANIFEST_TYPE, tag="1")
    origin.holds(Q, b"what bob has")
    origin.holds(O, b"what everyone has")
    server = web.Server(origin.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    origin.port = listening.sockets[0].getsockname()[1]
    clock = [0.0]

    async def resolve(host: str) -> list[str]:
        return ["127.0.0.1"]

    async def stop() -> None:
        listening.close()
        await server.shutdown(0.05)

    credentials = None
    if share is not None:
        secret = GivenSecret(Secret("pw"), name="test")
        login = Login(registry="test", username="robot", secret=secret, share=share)
        credentials = Credentials([login], clock=time.monotonic)
    async with AsyncExitStack() as parts:
        upstream = DirectUpstream(
            resolver=NameResolver(resolve),
            exempt=lambda _: None,
            tls=ssl.create_default_context(),
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
            credentials=credentials,
            rights=Rights(clock=lambda: clock[0], now=lambda: datetime.now(UTC)),
        )
        site = Site(registry="test", host="127.0.0.1", port=origin.port, scheme="http")
        yield World(cache, origin, site, clock, stop)
        await stop()


@pytest.fixture
async def pulled(world: World) -> World:
    """Alice has pulled her image: all of it is in the store."""
    await world.pull(P, "alice-1")
    await until(lambda: world.cache.fetches.running() == 0)
    assert all(world.has(each) for each in (LAYER, CONFIG, MANIFEST))
    world.origin.asked.clear()
    return world


async def test_a_second_pull_costs_one_head_by_which_the_client_proves_its_right(pulled: World) -> None:
    """C15: with another token, as every pull has one; the tag is asked for once, no byte comes again."""
    caches = await pulled.pull(P, "alice-2")

    assert caches == [Cache.REVALIDATED, Cache.HIT, Cache.HIT]
    assert pulled.origin.sent("HEAD") == [f"/v2/{P}/manifests/1"]
    assert pulled.origin.sent("GET") == []


async def test_a_first_pull_is_cached_and_asks_for_each_thing_once(world: World) -> None:
    """C15: the manifest proves right and membership, so the blobs cost their GET and nothing else."""
    assert await world.pull(P, "alice-1") == [Cache.MISS] * 3

    gets = [path for path in world.origin.sent("GET") if path != "/token"]
    assert sorted(gets) == sorted(
        [f"/v2/{P}/manifests/1", f"/v2/{P}/blobs/{digest_of(CONFIG)}", f"/v2/{P}/blobs/{digest_of(LAYER)}"]
    )


async def test_containerds_way_proves_as_much(pulled: World) -> None:
    """C15: a HEAD of the tag passes through and proves its token; another token asks by digest."""
    head = await pulled.ask(f"{P}/manifests/1", "alice-2", "HEAD", Accept=MANIFEST_TYPE)
    by_digest = await pulled.ask(f"{P}/manifests/{digest_of(MANIFEST)}", "alice-3")
    layers = [await pulled.ask(f"{P}/blobs/{digest_of(LAYER)}", token) for token in ("alice-2", "alice-3")]

    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, digest_of(MANIFEST))
    assert [answer.cache for answer in (by_digest, *layers)] == [Cache.HIT] * 3
    asked = [(each.method, each.authorization) for each in pulled.origin.asked if "/v2/" in each.path]
    assert asked == [("HEAD", "Basic alice-2"), ("HEAD", "Basic alice-3")]


READERS = [
    ("bob", Q),
    ("bob", P),
    ("", P),
    ("", O),
    ("bob", O),
    ("alice", O),
    ("carol", Q),
]
WAYS = {
    "GET": ("GET", {}),
    "HEAD": ("HEAD", {}),
    "closed range": ("GET", {"Range": "bytes=10-19"}),
    "suffix range": ("GET", {"Range": "bytes=-10"}),
    "range from": ("GET", {"Range": "bytes=10-"}),
    "If-None-Match": ("GET", {"If_None_Match": '"x"'}),
}
SECRETS = {"blobs": (LAYER, CONFIG, MANIFEST), "manifests": (MANIFEST, LAYER)}


async def told(world: World, path: str, token: str, way: str, named: str) -> tuple[object, ...]:
    """All that reaches the client, and the registry, with the digest that was asked for taken out."""
    method, headers = WAYS[way]
    world.origin.asked.clear()
    answer = await world.ask(path, token, method, **headers)
    body = (await read(answer)).decode()
    fields = sorted((name, value) for name, value in answer.labelled().items() if name != "Date")
    requests = [
        replace(asked, path=asked.path.replace(named, "NAMED"), authorization=asked.authorization[:10])
        for asked in world.origin.asked
    ]
    return answer.status, body.replace(named, "NAMED"), fields, requests


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("user", "repository"), READERS)
async def test_what_somebody_else_pulled_cannot_be_told_from_what_nobody_has(
    pulled: World, user: str, repository: str, way: str
) -> None:
    """I6, C15: status, header fields and body, and the registry is asked the same: by every name of a digest,
    with a token that was never seen and with one whose right to the repository is known.
    """
    tokens = itertools.count()
    for kind, contents in SECRETS.items():
        for content in contents:
            for fresh in (True, False):
                token = f"{user}-{next(tokens) if fresh else 'known'}" if user else ""
                if not fresh:
                    await pulled.ask(f"{Q}/blobs/{digest_of(b'what bob has')}", token)
                await told(
                    pulled, f"{repository}/{kind}/{UNKNOWN}", token, way, UNKNOWN
                )  # the verdict is known now
                unknown = digest_of(b"%d" % next(tokens))
                asked = [
                    await told(pulled, f"{repository}/{kind}/{name}", token, way, name)
                    for name in (unknown, digest_of(content))
                ]

                assert asked[0] == asked[1]
                assert asked[1][0] in (401, 404)
                assert asked[1][3], "the registry is asked"


async def test_how_long_a_refusal_takes_is_the_registrys_time_alone(pulled: World) -> None:
    """I6: each digest is asked for once, some of them alice's, some nobody's, in no order.

    The registry is asked as often in one case as in the other, and the times are of one distribution; they
    are printed.
    """
    samples, rounds = 80, list(itertools.product(("GET", "HEAD"), (Q, P)))
    layers = [b"layer %d" % number for number in range(samples * len(rounds))]
    pulled.origin.holds(P, many := manifest_of(*layers), MANIFEST_TYPE, tag="many")
    await read(await pulled.ask(f"{P}/manifests/many", "alice-1"))
    for layer in layers:
        pulled.origin.holds(P, layer)
        await read(await pulled.ask(f"{P}/blobs/{digest_of(layer)}", "alice-1"))
    await until(lambda: pulled.has(many) and all(pulled.has(layer) for layer in layers))
    for method, repository in rounds:
        took: dict[str, list[float]] = {"nobody's": [], "alice's": []}
        asked = dict.fromkeys(took, 0)
        hers = iter(layers[:samples])
        del layers[:samples]
        order = [(which, number) for number in range(samples) for which in took]
        random.Random(method + repository).shuffle(order)
        await pulled.ask(f"{repository}/blobs/{UNKNOWN}", "bob-1", method)  # it is known to be private now
        for which, number in order:
            named = digest_of(
                next(hers) if which == "alice's" else f"{method} {repository} {number}".encode()
            )
            path = f"{repository}/blobs/{named}"
            before, began = len(pulled.origin.asked), time.perf_counter()
            answer = await pulled.ask(path, "bob-1", method)
            assert answer.status in (401, 404)
            await read(answer)
            took[which].append(1000 * (time.perf_counter() - began))
            asked[which] += len(pulled.origin.asked) - before
        slower = _slower(took["nobody's"], took["alice's"])
        quartiles = {which: [round(at, 2) for at in statistics.quantiles(took[which])] for which in took}
        print(f"measured: {method} {repository}: {quartiles} ms, slower: {slower:.2f}")  # noqa: T201

        assert asked["alice's"] == asked["nobody's"] > 0
        assert 0.2 < slower < 0.8


def _slower(first: Sequence[float], second: Sequence[float]) -> float:
    """How often one of the first took longer than one of the second (Mann and Whitney's U / nm): half of the
    time, if both are of one distribution.
    """
    longer = sum((one > other) + (one == other) / 2 for one in first for other in second)
    return longer / (len(first) * len(second))


async def test_a_fetch_under_way_is_for_those_alone_who_could_have_begun_it(world: World) -> None:
    """I6, C11: bob and nobody are refused while it runs; carol proves her own right and then follows it."""
    await world.ask(f"{P}/manifests/1", "alice-1")
    world.origin.gate.clear()
    layer = f"{P}/blobs/{digest_of(LAYER)}"
    first = await world.ask(layer, "alice-1")
    assert world.cache.fetches.running() == 1

    for user, repository in (("bob-1", P), ("bob-1", Q), ("", P), ("", O), ("carol-1", O)):
        refused = await world.ask(f"{repository}/blobs/{digest_of(LAYER)}", user)
        assert refused.status in (401, 404), (user, repository)
        await read(refused)
    world.origin.asked.clear()
    second = await world.ask(layer, "carol-1")
    world.origin.gate.set()

    assert [await read(answer) for answer in (first, second)] == [LAYER, LAYER]
    asked = [(each.method, each.authorization) for each in world.origin.asked if "/v2/" in each.path]
    assert asked == [("HEAD", "Basic carol-1")]
    await until(lambda: world.cache.fetches.running() == 0)


async def test_a_right_that_was_withdrawn_counts_for_a_minute_and_no_longer(pulled: World) -> None:
    """C15, I6: the same credential; a new one is refused at once."""
    layer = f"{P}/blobs/{digest_of(LAYER)}"
    pulled.origin.readers[P] = set()

    assert (await pulled.ask(layer, "alice-2")).status == 401
    pulled.clock[0] = 59.0
    assert (await pulled.ask(layer, "alice-1")).cache is Cache.HIT
    pulled.clock[0] = 61.0
    refused = await pulled.ask(layer, "alice-1")

    assert (refused.status, refused.cache) == (401, Cache.BYPASS)


async def test_a_refusal_ends_a_right_that_was_remembered(pulled: World) -> None:
    """C15, I6: whatever the registry refuses in that name."""
    pulled.origin.readers[P] = set()
    assert (await pulled.ask(f"{P}/manifests/1", "alice-1")).status == 401

    assert (await pulled.ask(f"{P}/blobs/{digest_of(LAYER)}", "alice-1")).status == 401


async def test_once_both_proofs_hold_it_is_as_with_public_content(pulled: World) -> None:
    """C15, C9, C10: HEAD, ranges of every kind, a range that there is not, If-None-Match, If-Range."""
    layer, manifest = f"{P}/blobs/{digest_of(LAYER)}", f"{P}/manifests/{digest_of(MANIFEST)}"
    for asked, status, expected in (
        ("bytes=500-1499", 206, LAYER[500:1500]),
        ("bytes=500-", 206, LAYER[500:]),
        ("bytes=-500", 206, LAYER[-500:]),
        (f"bytes={len(LAYER)}-", 416, b""),
    ):
        answer = await pulled.ask(layer, "alice-1", Range=asked)
        assert (answer.status, answer.cache, await read(answer)) == (status, Cache.HIT, expected)
    whole = await pulled.ask(layer, "alice-1", Range="bytes=1-", If_Range='"other"')
    assert (whole.status, await read(whole)) == (200, LAYER)
    assert pulled.origin.asked == []
    head = await pulled.ask(layer, "alice-1", "HEAD")
    assert (head.status, head.cache, head.headers["Content-Length"]) == (200, Cache.HIT, str(len(LAYER)))
    for method in ("GET", "HEAD"):
        answer = await pulled.ask(manifest, "alice-1", method, If_None_Match='"x"')
        assert (answer.status, answer.cache) == (200, Cache.HIT)


async def test_nothing_private_is_served_while_the_registry_is_dark(pulled: World) -> None:
    """C7, C15, I6: not to nobody, and not to a credential that was accepted a moment ago."""
    public = manifest_of(b"what everyone has")
    pulled.origin.holds(O, b"{}")
    pulled.origin.holds(O, public, MANIFEST_TYPE, tag="1")
    await read(await pulled.ask(f"{O}/manifests/1"))
    await pulled.stop_origin()
    with pytest.raises(UpstreamUnreachable):
        await pulled.ask(f"{P}/manifests/1", "alice-1")  # from now on it is known to be dark

    paths = ("manifests/1", f"manifests/{digest_of(MANIFEST)}", f"blobs/{digest_of(LAYER)}")
    asked = itertools.product(paths, ("alice-1", "alice-2", ""), ("GET", "HEAD"))
    answers = await asyncio.gather(
        *(pulled.ask(f"{P}/{path}", token, method) for path, token, method in asked), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {UpstreamUnreachable}
    assert (await pulled.ask(f"{O}/manifests/1")).cache is Cache.STALE
    assert (await pulled.ask(f"{O}/manifests/{digest_of(public)}")).cache is Cache.HIT


@pytest.mark.parametrize("status", [429, 500, 503, 405])
async def test_a_registry_that_answers_no_head_is_no_worse_than_without_the_cache(
    pulled: World, status: int
) -> None:
    """I1, C15: what cannot be proven passes through, uncached."""
    pulled.origin.heads_fail = status

    for path in ("manifests/1", f"blobs/{digest_of(LAYER)}"):
        answer = await pulled.ask(f"{P}/{path}", "alice-2")
        assert (answer.status, answer.cache) == (200, Cache.BYPASS)
        await read(answer)


async def test_two_credentials_in_one_request_prove_nothing(pulled: World) -> None:
    """I6: nobody knows which of them the registry would take; it is asked."""
    fields = CIMultiDict([("Authorization", "Basic alice-1"), ("Authorization", "Basic bob-1")])
    target = f"/v2/{P}/blobs/{digest_of(LAYER)}"
    answer = await pulled.cache.service.answer(
        Incoming(site=pulled.site, method="GET", target=target, headers=CIMultiDictProxy(fields))
    )

    assert answer.cache is Cache.BYPASS
    assert pulled.origin.asked[-1].method == "GET"
    await read(answer)


TRICKS = {
    "subject": {"subject": described(MANIFEST, MANIFEST_TYPE)},
    "a layer elsewhere": {"layers": [described(LAYER, urls=["https://example.org/layer"])]},
    "an undistributed layer": {
        "layers": [described(LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar")]
    },
    "a key in other letters": {"layers": [described(LAYER)], "Layers": []},
    "a digest in other letters": {"layers": [{**described(LAYER), "Digest": digest_of(b"what bob has")}]},
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("repository", [Q, O])
async def test_a_manifest_that_somebody_pushed_opens_nothing_that_the_registry_did_not_look_for(
    pulled: World, trick: str, repository: str
) -> None:
    """I6: bob knows alice's digests and names them in a manifest, where registries accept them unseen."""
    pushed = json.dumps(
        {"schemaVersion": 2, "config": described(b"{}", "a/b"), "layers": [], **TRICKS[trick]}
    ).encode()
    pulled.origin.holds(repository, pushed, MANIFEST_TYPE, tag="trick")
    assert await read(await pulled.ask(f"{repository}/manifests/trick", "bob-1")) == pushed

    for path in (
        f"blobs/{digest_of(LAYER)}",
        f"manifests/{digest_of(MANIFEST)}",
        f"blobs/{digest_of(MANIFEST)}",
    ):
        answer = await pulled.ask(f"{repository}/{path}", "bob-1")
        assert answer.status == 404, path
        await read(answer)


async def test_an_index_with_children_that_are_not_there_opens_nothing(pulled: World) -> None:
    """I6: a sparse index is allowed; each of its manifests is asked for by itself, once."""
    index = json.dumps(
        {"schemaVersion": 2, "manifests": [described(each, MANIFEST_TYPE) for each in (MANIFEST, b"{}")]}
    ).encode()
    pulled.origin.holds(Q, index, INDEX_TYPE, tag="sparse")
    assert await read(await pulled.ask(f"{Q}/manifests/sparse", "bob-1")) == index

    assert (await pulled.ask(f"{Q}/manifests/{digest_of(MANIFEST)}", "bob-1")).status == 404
    assert (await pulled.ask(f"{Q}/blobs/{digest_of(LAYER)}", "bob-1")).status == 404


async def test_what_a_repository_is_shown_to_hold_is_served_from_what_another_brought(pulled: World) -> None:
    """C2, C15: one copy for all; bob's repository has the same layer, and no byte comes again."""
    other = manifest_of(LAYER, config=b'{"of": "bob"}')
    pulled.origin.holds(Q, LAYER)
    pulled.origin.holds(Q, other, MANIFEST_TYPE, tag="1")
    pulled.origin.holds(O, LAYER)
    assert await read(await pulled.ask(f"{Q}/manifests/1", "bob-1")) == other
    pulled.origin.asked.clear()

    by_manifest = await pulled.ask(f"{Q}/blobs/{digest_of(LAYER)}", "bob-1")
    assert pulled.origin.asked == []
    by_head = await pulled.ask(f"{O}/blobs/{digest_of(LAYER)}")

    for answer in (by_manifest, by_head):
        assert (answer.cache, await read(answer)) == (Cache.HIT, LAYER)
    assert [path for path in pulled.origin.sent("GET") if path != "/token"] == []


async def test_a_manifest_in_memory_is_at_hand_only_where_it_is_known_to_be(world: World) -> None:
    """I6, C4: the hot path asks the same question as the other one, and never about private repositories."""
    world.origin.holds(O, MANIFEST, MANIFEST_TYPE)
    world.origin.holds("team/other", b"{}")
    path = f"manifests/{digest_of(MANIFEST)}"
    await world.ask(f"team/other/blobs/{digest_of(b'{}')}")
    for _ in range(3):
        await read(await world.ask(f"{O}/{path}"))
        await read(await world.ask(f"{P}/{path}", "alice-1"))

    def at_hand(repository: str) -> bool:
        return world.cache.service.at_hand(world.site, "GET", f"/v2/{repository}/{path}") is not None

    assert at_hand(O)
    assert not at_hand("team/other")
    assert not at_hand(P)


async def test_what_was_pushed_after_a_repository_became_private_is_not_for_everyone(world: World) -> None:
    """I6: within the hour in which it is still believed to be public, by whoever's login it was fetched."""
    old, new = manifest_of(b"old"), manifest_of(b"new")
    world.origin.holds(O, old, MANIFEST_TYPE, tag="1")
    assert await read(await world.ask(f"{O}/manifests/1", "nobody")) == old
    world.origin.readers[O] = {"alice"}
    world.origin.holds(O, new, MANIFEST_TYPE, tag="1")
    world.origin.holds(O, b"new")

    assert await read(await world.ask(f"{O}/manifests/1", "alice-1")) == new
    assert await read(await world.ask(f"{O}/blobs/{digest_of(b'new')}", "alice-1")) == b"new"

    for token in ("", "bob-1"):
        for path in ("manifests/1", f"manifests/{digest_of(new)}", f"blobs/{digest_of(b'new')}"):
            assert (await world.ask(f"{O}/{path}", token)).status == 401


async def test_hosts_of_one_registry_are_kept_apart(pulled: World) -> None:
    """I6: of a wildcard's hosts (`*.pkg.dev`) each may have a repository of one name, and one be public."""
    twin = replace(pulled, site=replace(pulled.site, host="localhost"))
    readers, pulled.origin.readers = (
        pulled.origin.readers,
        {},
    )  # at the twin's: one origin plays both, in turns
    assert await read(await twin.ask(f"{P}/manifests/1")) == MANIFEST
    pulled.origin.readers = readers

    for path in ("manifests/1", f"blobs/{digest_of(LAYER)}"):
        assert (await pulled.ask(f"{P}/{path}")).status == 401


async def test_a_repository_of_the_same_name_elsewhere_holds_what_it_is_shown_to_hold(pulled: World) -> None:
    """I6: membership is a host's, too: what alice's repository has is no answer for its namesake."""
    twin = replace(pulled, site=replace(pulled.site, host="localhost"))
    namesake = manifest_of(b"of the namesake")
    pulled.origin.readers = {}
    pulled.origin.contents[P] = {}
    pulled.origin.holds(P, namesake, MANIFEST_TYPE, tag="1")
    assert await read(await twin.ask(f"{P}/manifests/1", "bob-1")) == namesake

    assert (await twin.ask(f"{P}/blobs/{digest_of(LAYER)}", "bob-1")).status == 404


async def test_what_is_deleted_through_the_cache_is_asked_for_again(pulled: World) -> None:
    """C15, C18: the registry's word counts from then on."""
    layer = f"{P}/blobs/{digest_of(LAYER)}"
    assert (await pulled.ask(layer, "alice-1", "DELETE")).status == 202

    assert (await pulled.ask(layer, "alice-1")).status == 404


@pytest.mark.parametrize("share", [Share.NOBODY])
async def test_a_login_that_is_shared_with_nobody_gives_nobody_a_right(pulled: World) -> None:
    """C15, C17: what is in the store is for those with a right of their own; the login is not even used."""
    assert (await pulled.pull(P, "carol-1")) == [Cache.REVALIDATED, Cache.HIT, Cache.HIT]

    for token in ("", "bob-1"):
        for path in ("manifests/1", f"manifests/{digest_of(MANIFEST)}", f"blobs/{digest_of(LAYER)}"):
            assert (await pulled.ask(f"{P}/{path}", token)).status == 401
    private = [asked for asked in pulled.origin.asked if P in asked.path]
    assert not any("robot" in asked.authorization for asked in private)
