"""What manifests tell of the sizes of blobs: remembered, bounded, forgotten."""

import json

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.promised_sizes import PromisedSizes

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def named(name: str) -> Digest:
    return Digest.of(name.encode())


def described(name: str, size: int, media_type: str = "application/octet-stream") -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(named(name)), "size": size}


def manifest(*layers: dict[str, object]) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": described("config", 2), "layers": layers}).encode()


def test_a_manifest_tells_of_its_config_and_layers() -> None:
    sizes = PromisedSizes()
    sizes.learn(manifest(described("layer", 100)), MANIFEST_TYPE)

    assert (sizes.of(named("config")), sizes.of(named("layer")), sizes.of(named("other"))) == (2, 100, None)


def test_an_index_tells_of_no_blobs() -> None:
    """Manifests are read whole and bounded anyway."""
    sizes = PromisedSizes()
    index = {"schemaVersion": 2, "manifests": [described("manifest", 9, MANIFEST_TYPE)]}
    sizes.learn(json.dumps(index).encode(), INDEX_TYPE)

    assert sizes.of(named("manifest")) is None


def test_what_is_malformed_tells_nothing() -> None:
    sizes = PromisedSizes()
    sizes.learn(b"{", MANIFEST_TYPE)
    sizes.learn(manifest(described("layer", -1)), MANIFEST_TYPE)

    assert sizes.of(named("layer")) is None


def test_the_oldest_is_forgotten_first_and_what_did_not_come_true_at_once() -> None:
    """I8."""
    sizes = PromisedSizes(most=3)
    sizes.learn(manifest(described("one", 1), described("two", 2)), MANIFEST_TYPE)
    sizes.learn(manifest(described("three", 3)), MANIFEST_TYPE)
    assert [sizes.of(named(each)) for each in ("one", "two", "three")] == [None, 2, 3]

    sizes.forget(named("two"))
    sizes.forget(named("two"))
    assert sizes.of(named("two")) is None
