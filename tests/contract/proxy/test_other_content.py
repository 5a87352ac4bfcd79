"""Content that the lab's registry does not take: other digests, other manifests, layers that are elsewhere.

A registry on a real socket, the cache and its requests are the real ones (FEATURES C22).
"""
# ruff: noqa: F401, F811 - pytest finds the world where it is imported

import hashlib
import json
from base64 import urlsafe_b64encode

import pytest

from contract.proxy.raw_origin import INDEX_TYPE, MANIFEST_TYPE, Content, digest_of
from contract.proxy.test_odd_origins import USER, World, body_of, world
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.signed_manifest import SIGNED_TYPE
from tidegate_proxy.registry.answer import Cache
from tidegate_proxy.storage.store import DigestMismatch

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

LIB = "/v2/lib/public"
BYTES = b"some other content " * 10_000


def sha512_of(content: bytes) -> str:
    return f"sha512:{hashlib.sha512(content).hexdigest()}"


def manifest(**members: object) -> bytes:
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "config": empty, "layers": [], **members}).encode()


async def test_a_blob_by_sha512_is_kept_and_served(world: World) -> None:
    """C2, C3, C22: by the algorithm that its digest names (image-spec, descriptor.md)."""
    path = f"{LIB}/blobs/{sha512_of(BYTES)}"
    world.origin.also[path] = Content(body=BYTES, digest=sha512_of(BYTES))
    cold = await world.read(path)
    while world.cache.fetches.running():
        await world.ask("/v2/")
    warm = await world.ask(path)

    assert (cold, await body_of(warm)) == (BYTES, BYTES)
    assert warm.cache is Cache.HIT
    assert len(world.origin.requests(path, "GET")) == 1


async def test_a_wrong_blob_by_sha512_never_completes(world: World) -> None:
    """C3, I2."""
    path = f"{LIB}/blobs/{sha512_of(BYTES)}"
    world.origin.also[path] = Content(body=BYTES[:-1] + b"!", digest=sha512_of(BYTES))

    with pytest.raises(DigestMismatch):
        await world.read(path)
    assert world.cache.store.blob(_digest(sha512_of(BYTES))) is None


async def test_a_manifest_by_sha512_is_kept_and_served(world: World) -> None:
    """C4, C22."""
    body = manifest(mediaType=MANIFEST_TYPE)
    path = f"{LIB}/manifests/{sha512_of(body)}"
    world.origin.also[path] = Content(body=body, media_type=MANIFEST_TYPE, digest=sha512_of(body))
    cold = await world.read(path)
    warm = await world.ask(path)

    assert (cold, await body_of(warm), warm.cache) == (body, body, Cache.HIT)
    assert warm.headers["Docker-Content-Digest"] == sha512_of(body)


async def test_an_index_of_indexes_is_cached_at_every_level(world: World) -> None:
    """C22: multi-arch images may be nested (image-spec, image-index.md)."""
    leaf = manifest(mediaType=MANIFEST_TYPE)
    inner = _index(leaf, MANIFEST_TYPE)
    outer = _index(inner, INDEX_TYPE)
    for body, media_type in ((outer, INDEX_TYPE), (inner, INDEX_TYPE), (leaf, MANIFEST_TYPE)):
        world.origin.also[f"{LIB}/manifests/{digest_of(body)}"] = Content(body=body, media_type=media_type)
    world.origin.also[f"{LIB}/manifests/nested"] = Content(body=outer, media_type=INDEX_TYPE)
    paths = [f"{LIB}/manifests/nested", *(f"{LIB}/manifests/{digest_of(each)}" for each in (inner, leaf))]
    cold = [await world.read(path, Accept=f"{INDEX_TYPE}, {MANIFEST_TYPE}") for path in paths]
    world.origin.asked.clear()
    warm = [await world.read(path, Accept=f"{INDEX_TYPE}, {MANIFEST_TYPE}") for path in paths]

    assert cold == warm == [outer, inner, leaf]
    assert [asked.method for asked in world.origin.asked] == ["HEAD"]


async def test_a_layer_that_is_elsewhere_is_never_fetched_from_there(world: World) -> None:
    """C22: `urls` are the client's to follow (image-spec, layer.md); the registry's answer is passed on."""
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest_of(BYTES),
        "size": len(BYTES),
        "urls": [f"http://127.0.0.1:{world.origin.port}/elsewhere/foreign"],
    }
    body = manifest(mediaType=MANIFEST_TYPE, layers=[foreign])
    world.origin.also[f"{LIB}/manifests/windows"] = Content(body=body, media_type=MANIFEST_TYPE)
    read = await world.read(f"{LIB}/manifests/windows", Accept=MANIFEST_TYPE)
    layer = await world.ask(f"{LIB}/blobs/{digest_of(BYTES)}", Authorization=USER)

    assert read == body
    assert layer.status == 404
    assert world.origin.requests("/elsewhere/") == []


def signed(payload: bytes) -> bytes:
    """As libtrust writes it: the signatures before the payload's last octets."""
    tail = b"\n}"
    assert payload.endswith(tail)
    length = len(payload) - len(tail)
    told = {"formatLength": length, "formatTail": _encoded(tail)}
    signature = {"signature": "unchecked", "protected": _encoded(json.dumps(told).encode())}
    return payload[:length] + b',\n "signatures": [' + json.dumps(signature).encode() + b"]" + tail


async def test_a_signed_manifest_of_schema_1_passes_as_it_is(world: World) -> None:
    """C22, I2: its digest is that of its payload (distribution, manifest v2 schema 1), and is verified so."""
    payload = b'{\n "schemaVersion": 1,\n "name": "lib/public"\n}'
    body, digest = signed(payload), digest_of(payload)
    content = Content(body=body, media_type=SIGNED_TYPE, digest=digest)
    by_tag, by_digest = f"{LIB}/manifests/old", f"{LIB}/manifests/{digest}"
    world.origin.also |= {by_tag: content, by_digest: content}
    for path in (by_tag, by_digest, by_tag, by_digest):
        assert await world.read(path, Accept=SIGNED_TYPE, Authorization=USER) == body

    wrong = Content(body=signed(payload.replace(b"1", b"2")), media_type=SIGNED_TYPE, digest=digest)
    world.origin.also[by_digest] = wrong
    with pytest.raises(DigestMismatch):
        await world.read(by_digest, Accept=SIGNED_TYPE, Authorization=USER)
    assert world.cache.store.blob(_digest(digest_of(body))) is None


@pytest.mark.parametrize(
    "members",
    [
        {"artifactType": "application/vnd.example+type"},
        {"subject": {"mediaType": MANIFEST_TYPE, "digest": digest_of(b"x"), "size": 1}},
        {"layers": [{"mediaType": "application/wasm", "digest": digest_of(BYTES), "size": len(BYTES)}]},
        {"annotations": {"a": "b"}},
    ],
)
async def test_whatever_a_manifest_says_it_is_served_to_the_letter(
    world: World, members: dict[str, object]
) -> None:
    """C4, C22: artifacts and referrers of OCI 1.1, WebAssembly."""
    body = manifest(mediaType=MANIFEST_TYPE, **members)
    path = f"{LIB}/manifests/{digest_of(body)}"
    world.origin.also[path] = Content(body=body, media_type=MANIFEST_TYPE)

    assert [await world.read(path), await world.read(path)] == [body, body]
    assert len(world.origin.requests(path, "GET")) == 1


def _index(body: bytes, media_type: str) -> bytes:
    child = {"mediaType": media_type, "digest": digest_of(body), "size": len(body)}
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [child]}).encode()


def _encoded(octets: bytes) -> str:
    return urlsafe_b64encode(octets).decode().rstrip("=")


def _digest(text: str) -> Digest:
    return Digest.parse(text)
