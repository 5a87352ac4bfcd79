"""Private content and tiers: who is asked for proofs, through whom the bytes come, and what a tier may say.

The registry, the tiers and the cache are those of `test_tiers`.
"""

from contract.proxy.test_tiers import BLOB_PATH, LAYER, MANIFEST, MANIFEST_PATH, World, digest_of, world
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Cache

__all__ = ["world"]

PRIVATE_PATH = BLOB_PATH.replace("library", "private")


async def test_private_bytes_come_through_central_and_never_through_a_proxy(world: World) -> None:
    """I6, C15, T2, T3: the proof is the registry's, asked directly, in the client's own name."""
    central, proxy = world.tier("mirrors"), world.tier("intercepts")
    central.contents = {PRIVATE_PATH: LAYER}
    node = await world.cache(world.connect(proxy), world.central(central), world.direct())

    assert await node.read(PRIVATE_PATH, Authorization="Bearer alice") == LAYER

    assert world.registry.asked_for(PRIVATE_PATH, "HEAD")[-1:] == ["Bearer alice"]
    assert world.registry.asked_for(PRIVATE_PATH) == []
    assert [(seen.method, seen.headers.get("authorization")) for seen in central.seen] == [
        ("GET", "Bearer alice")
    ]
    assert proxy.connects == []


async def test_what_central_refuses_the_registry_gives(world: World) -> None:
    """I1, I6: a tier that has no right, or does not know, is not the last word."""
    central = world.tier("mirrors")
    central.behave(status=401)
    node = await world.cache(world.central(central), world.direct())

    assert await node.read(PRIVATE_PATH, Authorization="Bearer alice") == LAYER


async def test_a_tier_that_has_a_digest_does_not_say_that_a_repository_holds_it(world: World) -> None:
    """I6: a proxy that caches by digest alone has what somebody pulled privately; the registry has not."""
    secret = b"what alice has"
    path = f"/v2/library/thing/blobs/{digest_of(secret)}"
    for manner in ("intercepts", "mirrors"):
        tier = world.tier("intercepts" if manner == "intercepts" else "mirrors")
        tier.contents = {path: secret, MANIFEST_PATH: MANIFEST}
        member = world.connect(tier) if manner == "intercepts" else world.central(tier)
        node = await world.cache(member, world.direct())
        assert await node.read(MANIFEST_PATH) == MANIFEST  # the repository is known to be public

        answer = await node.ask(path, Authorization="Bearer anonymous")

        assert (answer.status, answer.cache) == (404, Cache.BYPASS)
        assert path not in tier.paths
        assert node.cache.store.blob(Digest.parse(digest_of(secret))) is None
