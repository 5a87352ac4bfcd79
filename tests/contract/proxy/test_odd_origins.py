"""What an origin may do to a read, on real sockets: failing, odd and broken answers, byte by byte.

The cache, the token flow, retries and healing are the real ones. With real clients:
tests/netns/test_client_faults.py.
"""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from contract.proxy.raw_origin import (
    INDEX,
    LAYER,
    MANIFEST,
    MANIFEST_TYPE,
    TAGS,
    TINY,
    Asked,
    RawOrigin,
    Spoiled,
    digest_of,
    http,
)
from tidegate_proxy.fetching.origin import OriginBroken
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Site
from tidegate_proxy.storage.store import DigestMismatch
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

BLOB = f"/v2/lib/public/blobs/{digest_of(LAYER)}"
SMALL_BLOB = f"/v2/lib/public/blobs/{digest_of(TINY)}"
BY_DIGEST = f"/v2/lib/public/manifests/{digest_of(MANIFEST)}"
BY_TAG = "/v2/lib/public/manifests/1"
TAG_LIST = "/v2/lib/public/tags/list"
REFERRERS = f"/v2/lib/public/referrers/{digest_of(MANIFEST)}"
READS = {BY_TAG: MANIFEST, BY_DIGEST: MANIFEST, BLOB: LAYER, TAG_LIST: TAGS, REFERRERS: INDEX, "/v2/": b"{}"}
USER = "Bearer user"
SILENCE_S = 0.3

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # what runs; the pauses are real and cost time


@dataclass
class World:
    cache: PullThroughCache
    origin: RawOrigin
    site: Site

    async def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})

        async def pieces(sent: bytes) -> AsyncIterator[bytes]:
            yield sent

        return await self.cache.service.answer(
            Incoming(
                site=self.site,
                method=method,
                target=path,
                headers=CIMultiDictProxy(fields),
                body=None if body is None else pieces(body),
            )
        )

    async def read(self, path: str, **headers: str) -> bytes:
        answer = await self.ask(path, **headers)
        assert answer.status == 200, answer
        return await body_of(answer)

    async def has(self, content: bytes) -> bool:
        """Whether it is in the store, once no fetch is under way any more."""
        while self.cache.fetches.running():
            await asyncio.sleep(0.001)
        blob = self.cache.store.blob(Digest.parse(digest_of(content)))
        if blob is None:
            return False
        blob.close()
        return True


async def body_of(answer: Answer) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    return b"".join([bytes(piece) async for piece in answer.body])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async def resolve(host: str) -> list[str]:
        return [host]

    async with AsyncExitStack() as parts:
        origin = await RawOrigin.start()
        parts.push_async_callback(origin.stop)
        upstream = DirectUpstream(
            resolver=NameResolver(resolve),
            exempt=lambda _: None,
            tls=ssl.create_default_context(),
            idle_timeout_s=SILENCE_S,
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
        )
        site = Site(registry="test", host="127.0.0.1", port=origin.port, scheme="http")
        yield World(cache, origin, site)


# What is written instead of the good answer


def status(code: int, **fields: str) -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        body = b"" if asked.method == "HEAD" else b'{"errors":[]}'
        writer.write(http(code, body, **fields))
        return True

    return spoiled


def written(answer: bytes, *, goes_on: bool = False) -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer)
        return goes_on

    return spoiled


def cut_after(body_bytes: int, *, length: bool = True) -> Spoiled:
    """The good answer, whose body ends early."""

    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        head, _, body = good.partition(b"\r\n\r\n")
        if not length:
            head = b"\r\n".join(
                line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")
            )
        writer.write(head + b"\r\n\r\n" + body[:body_bytes])
        return False

    return spoiled


def reset_after(body_bytes: int) -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        head, _, body = good.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + body[:body_bytes])
        await writer.drain()
        writer.transport.abort()
        return False

    return spoiled


def lying(off_by: int) -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        head, _, body = good.partition(b"\r\n\r\n")
        length = f"Content-Length: {len(body)}".encode()
        assert length in head
        writer.write(
            head.replace(length, f"Content-Length: {len(body) + off_by}".encode()) + b"\r\n\r\n" + body
        )
        return False

    return spoiled


def gzipped(content: bytes, cut_at: int | None = None) -> Spoiled:
    coded = gzip.compress(content[:1000]) + gzip.compress(content[1000:])  # two members (RFC 1952, 2.2)

    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        fields = {"Content-Encoding": "gzip", "Content-Type": MANIFEST_TYPE}
        writer.write(http(200, coded[:cut_at], length=len(coded), **fields))
        return cut_at is None

    return spoiled


def for_user(origin: RawOrigin, path: str, fault: Spoiled) -> None:
    """Spoil the first request in the client's own name; answer well those by which the agent looks around."""

    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        if asked.headers.get("authorization") == USER:
            return await fault(asked, good, writer)
        origin.spoil(path, spoiled)
        writer.write(good)
        return True

    origin.spoil(path, spoiled)


def for_gets(origin: RawOrigin, path: str, *faults: Spoiled) -> None:
    """Spoil the first GETs with a good answer, one each; answer all else well."""
    left = list(faults)

    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        meets = asked.method == "GET" and good.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206"))
        fault = left.pop(0) if meets else None
        if left:
            origin.spoil(path, spoiled)
        if fault is not None:
            return await fault(asked, good, writer)
        writer.write(good)
        return True

    origin.spoil(path, spoiled)


def silent() -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(60)
        return False

    return spoiled


async def old(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
    """The good answer as HTTP/1.0 has it: no length, no keep-alive; its end is the connection's."""
    head, _, body = good.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n")[1:] if not line.startswith(b"Content-Length")]
    writer.write(b"\r\n".join([b"HTTP/1.0 200 OK", *lines, b"", b""]) + body)
    return False


async def interim(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
    """Provisional answers first (RFC 9110, 15.2), one of them alone for a moment."""
    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + good)
    return True


def named(text: str) -> str:
    """A path as the name of a test's case."""
    return text.partition("sha256:")[0].removeprefix("/v2/lib/public/")


EMPTY = written(b"")
FLEETING: dict[str, Spoiled] = {
    "429": status(429),
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "504": status(504),
    "522": status(522),
    "empty reply": EMPTY,
    "half a head": written(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "no HTTP": written(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
}


EACH = [("429", BY_TAG), ("500", BY_DIGEST), ("502", BLOB), ("504", BLOB), ("522", BLOB)]
EACH += [("empty reply", BLOB), ("empty reply", BY_TAG), ("half a head", BY_DIGEST), ("no HTTP", BLOB)]


@pytest.mark.parametrize(("fault", "path"), [*(("503", path) for path in READS), *EACH], ids=named)
@pytest.mark.parametrize("repository", ["public", "private"])
async def test_a_read_that_fails_once_is_asked_again(
    world: World, fault: str, repository: str, path: str
) -> None:
    """C12, issue item 5: every kind of read, from a cold cache or passed through with the client's token."""
    asked_for = path.replace("public", repository)
    for_user(world.origin, asked_for, FLEETING[fault])
    answer = await world.ask(asked_for, Authorization=USER)

    assert (answer.status, await body_of(answer)) == (200, READS[path])
    if repository == "public" and ("/blobs/" in path or "/manifests/" in path):
        assert answer.cache is Cache.MISS, "it went past the cache"


async def test_a_registry_that_hangs_up_on_everyone_for_a_moment_is_asked_again(world: World) -> None:
    """C12: as it does while it restarts."""
    path = TAG_LIST.replace("public", "private")
    world.origin.spoil(path, EMPTY, times=5)

    assert await world.read(path, Authorization=USER) == TAGS


@pytest.mark.parametrize("path", [BY_TAG, BY_DIGEST, BLOB], ids=["tag", "digest", "blob"])
@pytest.mark.parametrize("repository", ["public", "private"])
async def test_a_head_that_fails_once_is_asked_again(world: World, repository: str, path: str) -> None:
    """C9, C12: the same without a body."""
    asked_for = path.replace("public", repository)
    for_user(world.origin, asked_for, status(503))
    answer = await world.ask(asked_for, "HEAD", Authorization=USER)

    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(READS[path])))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("fault", ["503", "429", "empty reply"])
async def test_a_write_is_never_repeated(world: World, method: str, fault: str) -> None:
    """C18: what has been done cannot be done again; the client gets to know."""
    path = "/v2/lib/public/blobs/uploads/1"
    world.origin.spoil(path, FLEETING[fault], times=9)
    try:
        length = {} if method == "DELETE" else {"Content_Length": "5"}
        body = None if method == "DELETE" else b"layer"
        answer = await world.ask(path, method, body=body, Authorization=USER, **length)
    except UpstreamUnreachable:
        assert fault == "empty reply"
    else:
        assert answer.status == int(fault)

    assert len(world.origin.requests(path, method)) == 1


@pytest.mark.parametrize(("code", "path", "most"), [(429, BY_TAG, 5), (503, BLOB, 11)], ids=["429", "503"])
async def test_what_is_always_answered_reaches_the_client_soon(
    world: World, code: int, path: str, most: int
) -> None:
    """C16, I8: attempts are bounded, fewer of them at a rate limit."""
    world.origin.spoil(path, status(code), times=100)
    async with asyncio.timeout(15):
        answer = await world.ask(path, Authorization=USER)

    assert answer.status == code
    assert len(world.origin.requests(path)) <= most


async def test_what_failed_for_long_is_not_waited_for_by_everyone_who_asks(world: World) -> None:
    """I8: a client that asks again and again is answered at once, and the registry asked once for each."""
    path = TAG_LIST.replace("public", "private")
    world.origin.spoil(path, status(503), times=100)
    assert (await world.ask(path, Authorization=USER)).status == 503
    before = len(world.origin.requests(path))

    for _ in range(3):
        assert (await world.ask(path, Authorization=USER)).status == 503
    assert len(world.origin.requests(path)) == before + 3


async def test_an_origin_that_hangs_is_given_up(world: World) -> None:
    """I8: no answer at all, to any attempt; an error comes, and no request is left."""
    world.origin.spoil(BY_TAG, silent(), times=100)
    with pytest.raises(UpstreamUnreachable):
        async with asyncio.timeout(20):
            await world.ask(BY_TAG, Authorization=USER)

    assert len(world.origin.requests(BY_TAG)) <= 12


@pytest.mark.parametrize("oddity", [old, interim], ids=["HTTP/1.0", "1xx"])
@pytest.mark.parametrize("path", READS, ids=named)
async def test_an_old_or_a_talkative_origin_is_understood(world: World, oddity: Spoiled, path: str) -> None:
    """C1, RFC 9112 6.3, RFC 9110 15.2: answers without a length or with provisional ones before them."""
    world.origin.spoil(path, oddity, times=4)

    assert await world.read(path, Authorization=USER) == READS[path]


PLACES = (
    "nothing",
    "one byte",
    "half a head",
    "the head",
    "a byte",
    "a part of a size",
    "a third",
    "all but one",
)


def place(after: str, head: int, raw: int) -> int:
    """How many bytes that is, of a head and of head and body."""
    return {
        "nothing": 0,
        "one byte": 1,
        "half a head": head - 2,
        "the head": head,
        "a byte": head + 1,
        "a part of a size": head + 3,
        "a third": raw // 3,
        "all but one": raw - 1,
    }[after]


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("after", PLACES)
async def test_an_origin_may_die_at_any_byte(world: World, after: str, chunked: bool, end: str) -> None:
    """C12, I2: in the head, between head and body, in a chunk's size, before the last chunk."""

    async def dies(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        head, _, body = good.partition(b"\r\n\r\n")
        if chunked:
            lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
            head = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"])
            half = len(body) // 2
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
            body += b"0\r\n\r\n"
        raw = head + b"\r\n\r\n" + body
        writer.write(raw[: place(after, len(head) + 4, len(raw))])
        await writer.drain()
        if end == "reset":
            writer.transport.abort()
        return False

    for_gets(world.origin, BLOB, dies)

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert await world.has(LAYER)


@pytest.mark.parametrize("repository", ["public", "private"])
@pytest.mark.parametrize("path", [BY_TAG, BY_DIGEST], ids=["tag", "digest"])
@pytest.mark.parametrize("fault", [cut_after(50), reset_after(50)], ids=["cut", "reset"])
async def test_a_manifest_that_is_cut_is_asked_for_again(
    world: World, fault: Spoiled, path: str, repository: str
) -> None:
    """C12: no client asks again for a manifest; nothing of it leaves before it is whole."""
    asked_for = path.replace("public", repository)

    for_gets(world.origin, asked_for, fault)

    assert await world.read(asked_for, Authorization=USER) == MANIFEST
    assert len(world.origin.requests(asked_for, "GET")) == 2


async def test_what_arrived_before_a_cut_is_not_asked_for_again(world: World) -> None:
    """C12: the origin goes on at the byte it stopped at, though nobody had read so far yet."""
    for_gets(world.origin, BLOB, reset_after(100_000))

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert [asked.first for asked in world.origin.requests(BLOB, "GET")] == [0, 100_000]


@pytest.mark.parametrize("off_by", [7, -7, 100_000])
async def test_a_length_that_the_manifest_contradicts_is_not_believed(world: World, off_by: int) -> None:
    """C3, issue 6: Content-Length too long or too short, once; only the manifest is verified."""
    assert await world.read(BY_TAG, Authorization=USER) == MANIFEST
    world.origin.spoil(BLOB, lying(off_by))
    answer = await world.ask(BLOB, Authorization=USER)

    assert answer.headers["Content-Length"] == str(len(LAYER))
    assert await body_of(answer) == LAYER
    assert await world.has(LAYER)


async def test_a_body_without_a_length_that_ends_early_is_gone_on_with(world: World) -> None:
    """C12, issue 6: Content-Length absent; an early end looks like the end, but the manifest tells it."""
    assert await world.read(BY_TAG, Authorization=USER) == MANIFEST
    world.origin.spoil(BLOB, cut_after(100_000, length=False))

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert [asked.first for asked in world.origin.requests(BLOB, "GET")] == [0, 100_000]


async def test_a_size_that_did_not_come_true_is_forgotten(world: World) -> None:
    """I1: a manifest may tell a wrong size of a blob; that costs one attempt, not every one after it."""
    wrong = MANIFEST.replace(f'"size": {len(LAYER)}'.encode(), f'"size": {len(LAYER) - 1}'.encode())
    assert wrong != MANIFEST
    fields = {"Content-Type": MANIFEST_TYPE}

    async def told(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(http(200, wrong if asked.method == "GET" else b"", length=len(wrong), **fields))
        return True

    world.origin.spoil("manifests/wrong", told, times=9)
    assert await world.read("/v2/lib/public/manifests/wrong", Authorization=USER) == wrong
    with pytest.raises((DigestMismatch, OriginBroken)):
        await world.read(BLOB, Authorization=USER)

    assert await world.read(BLOB, Authorization=USER) == LAYER


@pytest.mark.parametrize("cut_at", [None, 3000], ids=["whole", "cut"])
async def test_a_layer_that_was_gzipped_on_the_way_is_decoded_and_kept(
    world: World, cut_at: int | None
) -> None:
    """C3, issue 6: the digest names what is in it; a cut one is gone on with by Range, or from the start."""
    assert await world.read(BY_TAG, Authorization=USER) == MANIFEST
    world.origin.spoil(BLOB, gzipped(LAYER, cut_at))
    answer = await world.ask(BLOB, Authorization=USER, Accept_Encoding="gzip")

    assert "Content-Encoding" not in answer.headers
    assert await body_of(answer) == LAYER
    assert await world.has(LAYER)


async def test_a_part_of_a_gzipped_layer_is_no_part_of_the_layer(world: World) -> None:
    """C10, RFC 9110 14.2: a range of the coded bytes is of no use; the whole is asked for and skipped."""

    async def coded_part(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        assert asked.first == 100_000
        fields = {"Content-Range": f"bytes 100000-100099/{len(LAYER)}", "Content-Encoding": "gzip"}
        writer.write(http(206, bytes(100), **fields))
        return True

    assert await world.read(BY_TAG, Authorization=USER) == MANIFEST
    world.origin.spoil(BLOB, reset_after(100_000), coded_part)

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert [asked.first for asked in world.origin.requests(BLOB, "GET")] == [0, 100_000, 0]


@pytest.mark.parametrize("path", [BY_TAG, BY_DIGEST], ids=["tag", "digest"])
async def test_a_manifest_that_was_gzipped_on_the_way_is_decoded_and_kept(world: World, path: str) -> None:
    """C4, issue 6: web servers compress JSON before anything else."""
    for_gets(world.origin, path, gzipped(MANIFEST))
    answer = await world.ask(path, Authorization=USER, Accept_Encoding="gzip")

    assert (answer.cache, await body_of(answer)) == (Cache.MISS, MANIFEST)
    assert await world.has(MANIFEST)


async def test_a_head_of_a_manifest_has_a_length_though_the_origin_tells_none(world: World) -> None:
    """C4, issue 6: who compresses on the way tells none, and dockerd ends a pull for it."""
    told = written(http(200, b"", length=-1, **{"Content-Encoding": "gzip"}), goes_on=True)
    world.origin.spoil(BY_TAG, told, told)
    answer = await world.ask(BY_TAG, "HEAD", Authorization=USER)

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(MANIFEST))
    assert answer.headers["Docker-Content-Digest"] == digest_of(MANIFEST)


def to_gets_alone(given: Spoiled) -> Spoiled:
    """HEAD is refused, so that nothing is proven and all passes through."""

    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        return await (status(405) if asked.method == "HEAD" else given)(asked, good, writer)

    return spoiled


def plain(content: bytes) -> Spoiled:
    async def spoiled(asked: Asked, good: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(http(200, content))
        return True

    return spoiled


@pytest.mark.parametrize("coded", [plain, gzipped])
@pytest.mark.parametrize(
    "content",
    [LAYER, LAYER[:-1] + b"!", b"!" + LAYER[1:], LAYER[:-9]],
    ids=["right", "last", "first", "short"],
)
async def test_what_passes_through_is_verified_too(
    world: World, content: bytes, coded: Callable[[bytes], Spoiled]
) -> None:
    """I2: by digest nothing wrong is ever whole, private and coded or not."""
    path = BLOB.replace("public", "private")
    world.origin.spoil(path, to_gets_alone(coded(content)), times=9)
    answer = await world.ask(path, Authorization=USER, Accept_Encoding="gzip")

    assert answer.cache == Cache.BYPASS
    if content == LAYER:
        assert "Content-Encoding" not in answer.headers
        assert await body_of(answer) == LAYER
    else:
        with pytest.raises(DigestMismatch):
            await body_of(answer)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
async def test_a_redirect_that_leads_to_a_refusal_is_asked_for_anew(world: World, code: int) -> None:
    """C8, C12: a signature that has expired, a replica that lags behind: not the registry's word."""
    world.origin.redirects = True
    for_gets(world.origin, "/elsewhere/", status(code))

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert await world.has(LAYER)
    assert len(world.origin.requests(BLOB, "GET")) == 2


async def test_a_body_that_breaks_behind_a_redirect_is_gone_on_with_by_a_fresh_one(world: World) -> None:
    """C8, C12: whose signature has expired by then does not matter."""
    world.origin.redirects = True
    for_gets(world.origin, "/elsewhere/", reset_after(100_000), status(403))

    assert await world.read(BLOB, Authorization=USER) == LAYER
    assert [asked.first for asked in world.origin.requests("/elsewhere/", "GET")] == [0, 100_000, 100_000]


@pytest.mark.parametrize("repository", ["public", "private"])
async def test_a_token_that_is_refused_once_is_shown_again(world: World, repository: str) -> None:
    """Issue 6, item 5: 401 once, with a challenge: containers/image ends the pull for it."""
    path = BLOB.replace("public", repository)
    refusal = status(401, **{"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token"'})
    for_user(world.origin, path, refusal)

    assert await world.read(path, Authorization=USER) == LAYER


async def test_an_expired_token_does_not_matter_where_none_is_needed(world: World) -> None:
    """C2, I1: a client whose token ran out in a long pull of a public image."""
    assert await world.read(BLOB, Authorization="Bearer expired") == LAYER
    assert await world.has(LAYER)


@pytest.mark.parametrize("path", [BLOB, BY_DIGEST, BY_TAG], ids=["blob", "digest", "tag"])
async def test_an_expired_token_is_told_where_one_is_needed(world: World, path: str) -> None:
    """C16, I6: then the registry's own answer reaches the client, with its challenge."""
    answer = await world.ask(path.replace("public", "private"), Authorization="Bearer expired")

    assert answer.status == 401
    assert "WWW-Authenticate" in answer.headers
