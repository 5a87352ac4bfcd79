"""OCI image-spec, image-layout.md: what the files of a layout are, and which images its index names.

The names come from annotations: containerd's `io.containerd.image.name`, or the specification's
`org.opencontainers.image.ref.name` where that is a whole name, as skopeo writes it; a tag is none. Pure.
"""

import json
import re
from dataclasses import dataclass

import msgspec

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.descriptor import MANIFEST_TYPES
from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.image_name import ImageName, InvalidImageName
from tidegate_proxy.oci.reference import InvalidTag, Tag

LAYOUT = "oci-layout"
INDEX = "index.json"
MAX_INDEX_BYTES = 4 * 1024 * 1024
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'

_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
_MOST_IMAGES = 1000


class LayoutRefused(TidegateError):
    """It is no image layout, or names nothing that can be imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutImage:
    """One manifest that the index of a layout names, and under which names."""

    name: ImageName
    digest: Digest
    media_type: str


class _Descriptor(msgspec.Struct):
    mediaType: str
    digest: str
    annotations: dict[str, str] | None = None


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


def blob_digest(name: str) -> Digest | None:
    """The digest of a file below `blobs/`; None for any other file, and for algorithms that are not known."""
    match = _BLOB.fullmatch(name)
    if match is None:
        return None
    try:
        return Digest.parse(f"{match[1]}:{match[2]}")
    except InvalidDigest:
        return None


def blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def images_of(index: bytes, *, name_as: ImageName | None) -> list[LayoutImage]:
    """The images that `index.json` names; `name_as` is what they are called instead. Raise LayoutRefused.

    A `name_as` without a tag gives the repository, and the tags are those of the annotations.
    """
    try:
        entries = msgspec.json.decode(index, type=_Index).manifests
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LayoutRefused(f"its index.json does not read: {error}") from error
    entries = [entry for entry in entries if entry.mediaType in MANIFEST_TYPES]
    if not entries or len(entries) > _MOST_IMAGES:
        raise LayoutRefused(f"its index.json names {len(entries) or 'no'} images that this cache knows")
    images = []
    for entry in entries:
        try:
            digest = Digest.parse(entry.digest)
        except InvalidDigest as error:
            raise LayoutRefused(f"its index.json names {entry.digest[:200]!r}: {error.cause}") from error
        name = _name(entry.annotations or {}, name_as, alone=len(entries) == 1)
        images.append(LayoutImage(name=name, digest=digest, media_type=entry.mediaType))
    return images


def _name(annotations: dict[str, str], name_as: ImageName | None, *, alone: bool) -> ImageName:
    told = [annotations[key] for key in (IMAGE_NAME, REF_NAME) if annotations.get(key)]
    if name_as is not None:
        if name_as.reference is not None:
            if not alone:
                raise LayoutRefused(
                    "it has several images, and one name for all of them was given",
                    next_step=f"tidegate import FILE --as {name_as.registry}/{name_as.repository}",
                )
            return name_as
        return ImageName(name_as.registry, name_as.repository, _tag(told))
    for text in told:
        if "/" in text or ":" in text:
            try:
                name = ImageName.parse(text)
            except InvalidImageName:
                continue
            return name.or_latest
    raise LayoutRefused(
        "it does not say what its image is called",
        next_step="tidegate import FILE --as REF, such as --as docker.io/library/nginx:1.27",
    )


def _tag(told: list[str]) -> Tag:
    for text in told:
        last = text.rpartition(":")[2] if "/" in text.rpartition(":")[0] or ":" in text else text
        try:
            return Tag.parse(last)
        except InvalidTag:
            continue
    return Tag("latest")


def index_of(name: ImageName, digest: Digest, media_type: str, size_bytes: int) -> bytes:
    """The `index.json` of a layout with one image."""
    annotations = {IMAGE_NAME: str(name)}
    if isinstance(name.reference, Tag):
        annotations[REF_NAME] = str(name)
    manifest = {
        "mediaType": media_type,
        "digest": str(digest),
        "size": size_bytes,
        "annotations": annotations,
    }
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    }
    return json.dumps(document, separators=(",", ":")).encode()
