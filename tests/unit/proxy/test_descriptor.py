"""What a manifest references, read strictly: a shape that could mislead yields an error, never a guess."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.descriptor import (
    MAX_MANIFEST_BYTES,
    Descriptor,
    MalformedManifest,
    referenced_by,
    subject_of,
)
from tidegate_proxy.oci.digest import Digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

descriptors = st.builds(
    Descriptor,
    media_type=st.sampled_from([LAYER, MANIFEST, "application/vnd.oci.empty.v1+json"]),
    digest=st.binary().map(Digest.of),
    size_bytes=st.integers(0, 2**63 - 1),
)


def written(descriptor: Descriptor) -> dict[str, Any]:
    """The descriptor as a manifest carries it, with fields that are of no interest here."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
        "annotations": {"a": "b"},
        "platform": {"os": "linux"},
    }


def described(name: str) -> dict[str, Any]:
    return {"mediaType": LAYER, "digest": str(Digest.of(name.encode())), "size": len(name)}


def manifest(**fields: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "config": described("c"), "layers": [described("l")], **fields}
    ).encode()


def index(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": [described("m")], **fields}).encode()


@pytest.mark.parametrize("media_type", [MANIFEST, DOCKER_MANIFEST, MANIFEST.upper() + "; charset=utf-8"])
@given(config=descriptors, layers=st.lists(descriptors))
def test_a_manifest_references_its_config_and_its_layers(
    media_type: str, config: Descriptor, layers: list[Descriptor]
) -> None:
    """C15, C22: in order, each once."""
    body = manifest(config=written(config), layers=[written(layer) for layer in layers])

    assert referenced_by(body, media_type) == tuple(dict.fromkeys([config, *layers]))


@pytest.mark.parametrize("media_type", [INDEX, DOCKER_LIST])
@given(manifests=st.lists(descriptors))
def test_an_index_references_its_manifests(media_type: str, manifests: list[Descriptor]) -> None:
    """C15, C22: in order, each once."""
    body = index(manifests=[written(manifest) for manifest in manifests])

    assert referenced_by(body, media_type) == tuple(dict.fromkeys(manifests))


@pytest.mark.parametrize(("body", "media_type"), [(manifest, MANIFEST), (index, INDEX)])
def test_a_subject_is_told_apart_from_what_a_manifest_is_made_of(body: Any, media_type: str) -> None:
    """C15: whoever may push can name any subject, so it must not prove that a repository holds it."""
    subject = described("private")

    found = subject_of(body(subject=subject), media_type)

    assert found is not None and str(found.digest) == subject["digest"]
    assert found not in referenced_by(body(subject=subject), media_type)
    assert subject_of(body(), media_type) is None


def test_content_that_cannot_be_verified_is_left_out() -> None:
    """C3: a layer under an unknown algorithm does not spoil the others."""
    unknown = {**described("x"), "digest": "blake3:abc"}

    assert referenced_by(index(manifests=[unknown]), INDEX) == ()
    assert len(referenced_by(manifest(layers=[unknown, described("l")]), MANIFEST)) == 2


@pytest.mark.parametrize(
    "media_type", ["", "application/json", "application/vnd.docker.distribution.manifest.v1+json"]
)
def test_another_media_type_references_nothing(media_type: str) -> None:
    """C22: an unknown kind of artifact is served, and proves nothing."""
    assert referenced_by(manifest(), media_type) == ()
    assert subject_of(manifest(), media_type) is None


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", MANIFEST),
        (b"{}", MANIFEST),
        (b"{}", INDEX),
        (b"[]", INDEX),
        (b"null", INDEX),
        (b"\xff\xfe", MANIFEST),
        (index(), MANIFEST),
        (manifest(), INDEX),
        (manifest(manifests=[described("m")]), MANIFEST),
        (manifest(manifests=[]), MANIFEST),
        (manifest(manifests=[described("m")]), INDEX),
        (index(layers=[described("l")]), INDEX),
        (index(config=described("c")), INDEX),
        (manifest(mediaType=INDEX), MANIFEST),
        (manifest(mediaType=DOCKER_MANIFEST), MANIFEST),
        (manifest(schemaVersion=1), MANIFEST),
        (manifest(config=None), MANIFEST),
        (manifest(layers={"0": described("l")}), MANIFEST),
        (manifest(layers=[described("l") | {"digest": "sha256:../../etc"}]), MANIFEST),
        (manifest(layers=[described("l") | {"digest": None}]), MANIFEST),
        (manifest(layers=[described("l") | {"size": -1}]), MANIFEST),
        (manifest(layers=[described("l") | {"size": 2**63}]), MANIFEST),
        (manifest(layers=[described("l") | {"size": 10**400}]), MANIFEST),
        (manifest(layers=[described("l") | {"size": "1"}]), MANIFEST),
        (manifest(layers=[described("l") | {"size": 1.5}]), MANIFEST),
        (manifest(layers=[described("l") | {"mediaType": "a/b\r\nSet-Cookie: x"}]), MANIFEST),
        (manifest(layers=[described("l") | {"mediaType": "a/b\rX: y"}]), MANIFEST),
        (manifest(layers=[described("l") | {"mediaType": ""}]), MANIFEST),
        (manifest(subject="sha256:x"), MANIFEST),
        (manifest() + b"{}", MANIFEST),
        (b'{"schemaVersion":2,"mediaType":"\xff"}', INDEX),
        (b'{"x":' + b"[" * 1_000_000, MANIFEST),
        (manifest() + b" " * MAX_MANIFEST_BYTES, MANIFEST),
    ],
)
def test_a_document_of_another_shape_is_malformed(body: bytes, media_type: str) -> None:
    """C15: nothing is concluded from what two readers could read differently."""
    with pytest.raises(MalformedManifest):
        referenced_by(body, media_type)


fields = st.sampled_from(["mediaType", "config", "layers", "manifests", "digest", "size", "subject"])
json_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.one_of(
        st.binary(),
        json_values.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(st.sampled_from(["layers", "config", "subject", "mediaType"]), json_values).map(
            lambda fields: manifest(**fields)
        ),
    ),
    st.sampled_from([MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST]),
)
def test_no_bytes_make_the_reader_raise_anything_but_its_own_error(body: bytes, media_type: str) -> None:
    """I1: a registry's bytes are data."""
    try:
        referenced = referenced_by(body, media_type)
    except MalformedManifest:
        return

    assert all(Digest.parse(str(descriptor.digest)) == descriptor.digest for descriptor in referenced)
