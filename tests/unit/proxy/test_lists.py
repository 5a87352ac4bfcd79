"""Lists of tags and referrers: whose they are, what is kept of them, and when the kept one is served.

The registry is a real HTTP origin on loopback; the cache is the whole pull-through cache.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.lists import MAX_BYTES
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Site
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.listings import Listing, Listings
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable
from unit.proxy.private_origin import INDEX_TYPE, MANIFEST_TYPE, PrivateOrigin, digest_of, manifest_of

PUBLIC, PRIVATE = "team/public", "alice/private"
MANIFEST = manifest_of(b"a layer")
TAGS = b'{"name": "team/public", "tags": ["1"]}'
PAGED = {"Content-Type": "application/json", "Link": '</v2/team/public/tags/list?n=1&last=1>; rel="next"'}
REFERRERS = f"referrers/{digest_of(MANIFEST)}"
FILTERED = {"Content-Type": INDEX_TYPE, "OCI-Filters-Applied": "artifactType"}


@dataclass
class World:
    cache: PullThroughCache
    origin: PrivateOrigin
    site: Site
    stop_origin: Callable[[], Awaitable[None]]

    async def ask(self, path: str, token: str = "", method: str = "GET") -> Answer:
        fields = CIMultiDict({"Authorization": f"Basic {token}"} if token else {})
        return await self.cache.service.answer(
            Incoming(site=self.site, method=method, target=f"/v2/{path}", headers=CIMultiDictProxy(fields))
        )

    async def told(self, path: str, token: str = "") -> tuple[int, bytes, Cache]:
        answer = await self.ask(path, token)
        body = answer.body
        if not isinstance(body, bytes):
            body = b"".join([bytes(piece) async for piece in body])
        return answer.status, body, answer.cache


@pytest.fixture
def stale_max() -> timedelta:
    return timedelta(days=1)


@pytest.fixture
async def world(tmp_path: Path, stale_max: timedelta) -> AsyncIterator[World]:
    """Everyone's image has been pulled, alice's own one too."""
    origin = PrivateOrigin(readers={PRIVATE: {"alice"}})
    for repository in (PUBLIC, PRIVATE):
        origin.holds(repository, MANIFEST, MANIFEST_TYPE, tag="1")
        origin.lists[f"/v2/{repository}/tags/list?n=1"] = (TAGS, PAGED)
        origin.lists[f"/v2/{repository}/{REFERRERS}?artifactType=a%2Fb"] = (b"{}", FILTERED)
    server = web.Server(origin.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    origin.port = listening.sockets[0].getsockname()[1]

    async def resolve(host: str) -> list[str]:
        return ["127.0.0.1"]

    async def stop() -> None:
        listening.close()
        await server.shutdown(0.05)

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
            stale_max=stale_max,
            upstream=upstream,
            fetch_ended=lambda _: None,
            say=lambda _: None,
        )
        site = Site(registry="test", host="127.0.0.1", port=origin.port, scheme="http")
        world = World(cache, origin, site, stop)
        for path, token in ((f"{PUBLIC}/manifests/1", ""), (f"{PRIVATE}/manifests/1", "alice-1")):
            assert (await world.told(path, token))[:2] == (200, MANIFEST)
        yield world
        await stop()


@pytest.mark.parametrize("how", ["dark", 429, 503])
async def test_the_last_list_is_served_where_there_is_no_other(world: World, how: str | int) -> None:
    """C7, C22: with its Link, its filter and its query, and for that query alone."""
    tags, referrers = f"{PUBLIC}/tags/list?n=1", f"{PUBLIC}/{REFERRERS}?artifactType=a%2Fb"
    fresh = [await world.ask(path) for path in (tags, referrers)]
    assert [answer.cache for answer in fresh] == [Cache.MISS] * 2
    if isinstance(how, int):
        world.origin.lists_fail = how
    else:
        await world.stop_origin()

    stale = [await world.ask(path) for path in (tags, referrers)]

    assert [(answer.status, answer.body, answer.cache) for answer in stale] == [
        (200, TAGS, Cache.STALE),
        (200, b"{}", Cache.STALE),
    ]
    assert stale[0].headers["Link"] == PAGED["Link"]
    assert stale[1].headers["OCI-Filters-Applied"] == "artifactType"
    assert stale[1].headers["Content-Type"] == INDEX_TYPE
    if isinstance(how, int):
        assert (await world.told(f"{PUBLIC}/tags/list", "bob-1"))[0] == how
    else:
        with pytest.raises(UpstreamUnreachable):
            await world.ask(f"{PUBLIC}/tags/list")


async def test_a_list_that_changed_is_seen_at_once(world: World) -> None:
    """C22: the registry is asked each time, and what it says is kept."""
    path = f"{PUBLIC}/tags/list?n=1"
    await world.told(path)
    world.origin.lists[f"/v2/{path}"] = (b'{"tags": []}', {"Content-Type": "application/json"})

    assert await world.told(path) == (200, b'{"tags": []}', Cache.MISS)

    await world.stop_origin()
    stale = await world.ask(path)
    assert (stale.body, stale.cache, "Link" in stale.headers) == (b'{"tags": []}', Cache.STALE, False)


async def test_that_there_are_no_lists_of_referrers_is_kept(world: World) -> None:
    """C22: clients look for a tag in their place then, also in the dark; a list of tags is another thing."""
    referrers, tags = f"{PUBLIC}/{REFERRERS}", f"{PUBLIC}/tags/list?n=404"
    for path in (referrers, tags):
        assert (await world.told(path, "bob-1"))[0] == 404
    await world.stop_origin()

    assert await world.told(referrers, "bob-1") == (404, b"404 page not found\n", Cache.STALE)
    with pytest.raises(UpstreamUnreachable):
        await world.ask(tags)


async def test_a_private_list_is_kept_for_nobody(world: World) -> None:
    """I6, C16: alice's passes through in her own name alone; in the dark there is none, for her neither."""
    path = f"{PRIVATE}/tags/list?n=1"
    world.origin.asked.clear()
    assert await world.told(path, "alice-1") == (200, TAGS, Cache.BYPASS)
    assert [each.authorization for each in world.origin.asked] == ["Basic alice-1"]
    assert (await world.told(path, "bob-1"))[0] == 401
    await world.stop_origin()

    for token in ("alice-1", "bob-1", ""):
        with pytest.raises(UpstreamUnreachable):
            await world.ask(path, token)


async def test_what_is_no_longer_everyones_is_forgotten(world: World) -> None:
    """I6: the registry refuses nobody's question; alice still gets hers, and in the dark there is none."""
    path = f"{PUBLIC}/tags/list?n=1"
    await world.told(path)
    world.origin.readers[PUBLIC] = {"alice"}

    assert (await world.told(path, "bob-1"))[0] == 401
    assert await world.told(path, "alice-1") == (200, TAGS, Cache.BYPASS)

    await world.stop_origin()
    with pytest.raises(UpstreamUnreachable):
        await world.ask(path)


@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
async def test_a_long_list_passes_through(world: World, size: int) -> None:
    """I8: whole, but kept up to a mebibyte only."""
    path = f"{PUBLIC}/tags/list?n=9"
    world.origin.lists[f"/v2/{path}"] = (bytes(size), {"Content-Type": "application/json"})

    status, body, cache = await world.told(path, "bob-1")

    assert (status, len(body), cache) == (200, size, Cache.MISS if size <= MAX_BYTES else Cache.BYPASS)


@pytest.mark.parametrize("stale_max", [timedelta(0)])
async def test_a_list_is_not_served_for_ever(world: World) -> None:
    """C7: up to `stale_max`, as tags are."""
    path = f"{PUBLIC}/tags/list?n=1"
    await world.told(path)
    await world.stop_origin()

    with pytest.raises(UpstreamUnreachable):
        await world.ask(path)


# The rows


def listing(body: bytes, second: int = 0) -> Listing:
    when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    return Listing(status=200, fields={"Link": "<x>"}, body=body, checked_at=when)


async def test_lists_outlive_a_restart_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    """C22: the same answer from the file; what does not read is asked for again."""
    index = Index.open(tmp_path / "index.sqlite")
    for number in range(2):
        await index.listings.put("docker.io", "a/b", f"/{number}", listing(b"tags", number))
    await index.close()
    file = IndexFile(tmp_path / "index.sqlite", lambda _: None)
    file.write("UPDATE listings SET body = ? WHERE target = '/1'", [(b"damaged",)])
    file.close()

    index = Index.open(tmp_path / "index.sqlite")
    assert await index.listings.get("docker.io", "a/b", "/0") == listing(b"tags")
    assert await index.listings.get("docker.io", "a/b", "/1") is None
    assert await index.listings.get("docker.io", "a/c", "/0") is None
    await index.listings.forget("docker.io", "a/b")
    assert await index.listings.get("docker.io", "a/b", "/0") is None
    await index.close()


async def test_those_confirmed_longest_ago_give_way(tmp_path: Path) -> None:
    """I8: beyond so many bytes, or so many rows."""
    file = IndexFile(tmp_path / "index.sqlite", lambda _: None)

    async def at_once(function, *arguments):  # type: ignore[no-untyped-def]  # as the protocol has it
        return function(*arguments)

    async def select(sql: str, row: Row) -> Sequence[Row]:
        return file.select(sql, row)

    listings = Listings(file, at_once, select, limit_bytes=10_000, limit_rows=5)
    kept = []
    for number, size in enumerate([1_000] * 8 + [4_000, 4_000]):
        body = random.Random(number).randbytes(size)
        await listings.put("docker.io", "a/b", f"/{number}", listing(body, number))
        kept.append([await listings.get("docker.io", "a/b", f"/{each}") is not None for each in range(10)])

    assert [each for each in range(10) if kept[7][each]] == [3, 4, 5, 6, 7]
    assert [each for each in range(10) if kept[9][each]] == [7, 8, 9]
    file.close()
