"""Which images the index of a layout names."""

import json

import pytest

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_layout import (
    IMAGE_NAME,
    REF_NAME,
    LayoutRefused,
    blob_digest,
    images_of,
    index_of,
)
from tidegate_proxy.oci.image_name import ImageName

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DIGEST = Digest.of(b"manifest")


def index(*annotations: dict[str, str], media_type: str = MANIFEST, digest: str = str(DIGEST)) -> bytes:
    entries = [
        {"mediaType": media_type, "digest": digest, "size": 8, "annotations": each} for each in annotations
    ]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


def names(document: bytes, name_as: str = "") -> list[str]:
    given = ImageName.parse(name_as) if name_as else None
    return [str(image.name) for image in images_of(document, name_as=given)]


@pytest.mark.parametrize(
    ("annotations", "name_as", "name"),
    [
        ({IMAGE_NAME: "docker.io/library/x:1", REF_NAME: "1"}, "", "docker.io/library/x:1"),
        ({REF_NAME: "quay.io/team/tool:2"}, "", "quay.io/team/tool:2"),
        ({REF_NAME: "x:2"}, "", "docker.io/library/x:2"),
        ({REF_NAME: "1"}, "quay.io/a/b", "quay.io/a/b:1"),
        ({REF_NAME: "docker.io/library/x:3"}, "quay.io/a/b", "quay.io/a/b:3"),
        ({}, "quay.io/a/b", "quay.io/a/b:latest"),
        ({REF_NAME: "1"}, "quay.io/a/b:9", "quay.io/a/b:9"),
    ],
)
def test_an_image_is_called_as_its_annotations_or_the_operator_say(
    annotations: dict[str, str], name_as: str, name: str
) -> None:
    """C21: containerd's annotation, the specification's, and `--as`."""
    assert names(index(annotations), name_as) == [name]


@pytest.mark.parametrize(
    ("document", "name_as"),
    [
        (index({}), ""),
        (index({REF_NAME: "1"}), ""),
        (index({REF_NAME: "Not A Name/x:1"}), ""),
        (index({REF_NAME: "a/b:1"}, {REF_NAME: "a/b:2"}), "quay.io/a/b:9"),
        (index(), ""),
        (index({REF_NAME: "a/b:1"}, media_type="text/plain"), ""),
        (index({REF_NAME: "a/b:1"}, digest="sha256:../../etc/passwd"), ""),
        (b"[]", ""),
        (b"{", ""),
        (b'{"manifests": 1}', ""),
    ],
)
def test_what_names_no_image_is_refused(document: bytes, name_as: str) -> None:
    with pytest.raises(LayoutRefused):
        names(document, name_as)


def test_only_blobs_under_known_algorithms_are_blobs() -> None:
    assert blob_digest(f"blobs/sha256/{'a' * 64}") == Digest("sha256", "a" * 64)
    for name in ("index.json", "blobs/sha256/x", f"blobs/md5/{'a' * 32}", f"blobs/sha256/{'a' * 63}"):
        assert blob_digest(name) is None


def test_what_is_exported_names_itself() -> None:
    name = ImageName.parse("quay.io/team/tool:2")

    assert names(index_of(name, DIGEST, MANIFEST, 8)) == ["quay.io/team/tool:2"]
