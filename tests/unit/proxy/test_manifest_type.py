"""Which documents are manifests, without anybody's word for it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, MalformedManifest, referenced_by
from tidegate_proxy.oci.manifest_type import manifest_type

DESCRIBED = {"mediaType": "application/x", "digest": "sha256:" + "0" * 64, "size": 1}
IMAGE = {"schemaVersion": 2, "config": DESCRIBED, "layers": [DESCRIBED]}
INDEX = {"schemaVersion": 2, "manifests": [DESCRIBED]}
OCI_IMAGE, DOCKER_IMAGE, OCI_INDEX, DOCKER_LIST = MANIFEST_TYPES


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (IMAGE, OCI_IMAGE),
        (INDEX, OCI_INDEX),
        (IMAGE | {"mediaType": DOCKER_IMAGE}, DOCKER_IMAGE),
        (INDEX | {"mediaType": DOCKER_LIST}, DOCKER_LIST),
        (INDEX | {"mediaType": OCI_INDEX}, OCI_INDEX),
        (IMAGE | {"manifests": [DESCRIBED]}, None),  # both at once: CVE-2021-41190
        (IMAGE | {"mediaType": OCI_INDEX}, None),
        (IMAGE | {"mediaType": "application/vnd.oci.artifact.manifest.v1+json"}, None),
        (IMAGE | {"schemaVersion": 1}, None),
        ({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}, None),
        ({"schemaVersion": 2}, None),
        ([IMAGE], None),
    ],
)
def test_a_document_is_known_by_what_it_has(document: object, media_type: str | None) -> None:
    """C4: the media type of a manifest whose Content-Type was lost with the index."""
    assert manifest_type(json.dumps(document, indent=3).encode()) == media_type


@given(st.binary(max_size=60).map(lambda tail: b"{" + tail) | st.binary(max_size=60))
def test_anything_else_is_none(document: bytes) -> None:
    """Whatever lies in the store: never an exception."""
    assert manifest_type(document) is None


@given(st.sampled_from([IMAGE, INDEX]), st.sampled_from([None, *MANIFEST_TYPES]))
def test_what_is_found_reads_as_what_it_was_found_to_be(
    document: dict[str, object], named: str | None
) -> None:
    """What is concluded is never stricter or laxer than what is read of a registry's own word."""
    written = json.dumps(document | ({"mediaType": named} if named else {})).encode()
    found = manifest_type(written)
    if found is not None:
        assert referenced_by(written, found)
    else:
        assert named is not None
        with pytest.raises(MalformedManifest):
            referenced_by(written, named)
