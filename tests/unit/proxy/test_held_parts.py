"""What an accepted manifest proves about its repository, and what whoever pushed it could make it name."""

import json

import pytest

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.held_parts import held_parts

OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG, LAYER, OTHER = (Digest.of(each) for each in (b"config", b"layer", b"other"))


def part(digest: Digest, media_type: str = "a/b", **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1, **more}


def document(**more: object) -> dict[str, object]:
    return {"schemaVersion": 2, "config": part(CONFIG), "layers": [part(LAYER)], **more}


@pytest.mark.parametrize("media_type", [OCI, DOCKER, f"{OCI}; charset=utf-8", OCI.upper()])
def test_config_and_layers_are_held_beside_a_manifest(media_type: str) -> None:
    """C15: a registry looks for them before it takes the manifest."""
    assert held_parts(json.dumps(document()).encode(), media_type) == (CONFIG, LAYER)


@pytest.mark.parametrize(
    "layer",
    [
        part(OTHER, urls=["https://example.org/layer"]),
        part(OTHER, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        part(OTHER, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        part(OTHER, "application/vnd.oci.image.layer.NonDistributable.v1.tar"),
    ],
)
def test_layers_that_lie_elsewhere_are_not(layer: dict[str, object]) -> None:
    """I6: registries take them unseen (image-spec, layer.md)."""
    assert held_parts(json.dumps(document(layers=[part(LAYER), layer])).encode(), OCI) == (CONFIG, LAYER)


def test_a_subject_is_not() -> None:
    """I6: registries must take one that is not there (distribution-spec)."""
    assert OTHER not in held_parts(json.dumps(document(subject=part(OTHER, OCI))).encode(), OCI)


GOOD = json.dumps(document())
NAMED = json.dumps(document(layers=[part(OTHER)]))


@pytest.mark.parametrize(
    "text",
    [
        NAMED[:-1] + ', "layers": []}',
        NAMED[:-1] + ', "Layers": []}',
        NAMED[:-1] + ', "layer\u017f": []}',
        NAMED[:-1] + ', "CONFIG": null}',
        NAMED.replace('"layers"', '"LAYERS"')[:-1] + ', "layers": []}',
        NAMED.replace('"digest": "' + str(OTHER), f'"Digest": "{LAYER}", "digest": "{OTHER}'),
        NAMED.replace('"size": 1}]', '"size": 1, "URLs": ["https://example.org"]}]'),
        NAMED.replace('"size": 1}]', '"size": 1, "size": 2}]'),
        NAMED[:-1] + ', "annotations": {"a": "1", "A": "2"}}',
    ],
)
def test_a_document_that_parsers_may_read_differently_proves_nothing(text: str) -> None:
    """I6: Go takes keys in any letters, and the last of several; whoever pushes knows that."""
    assert held_parts(GOOD.encode(), OCI)
    assert held_parts(text.encode(), OCI) == ()


@pytest.mark.parametrize(
    ("manifest", "media_type"),
    [
        (json.dumps({"schemaVersion": 2, "manifests": [part(OTHER, OCI)]}), INDEX),
        (GOOD, INDEX),
        (GOOD, "application/octet-stream"),
        ("no JSON", OCI),
        ("[" * 100_000, OCI),
        (json.dumps(document(padding="x" * 600_000)), OCI),
        (json.dumps(document(layers=[part(Digest.of(b"%d" % each)) for each in range(1100)])), OCI),
    ],
    ids=["index", "manifest as index", "other type", "no JSON", "deep", "large", "many"],
)
def test_what_is_no_plain_image_manifest_proves_nothing(manifest: str, media_type: str) -> None:
    """I6, I8: an index may be sparse; what it names is asked for by itself."""
    assert held_parts(manifest.encode(), media_type) == ()
