"""Descriptors, and what a manifest references: OCI image-spec, descriptor.md, manifest.md and image-index.md.

`referenced_by` reads an image manifest or an index (the Docker types too) and returns what has to
exist beside it: config and layers, or manifests. It is strict, because what it returns is taken as
the registry's word that a repository holds these digests. A document that says it is another type
than its Content-Type, or that is a manifest and an index at once, is refused (CVE-2021-41190).

This module does not verify digests or sizes, does not fetch, and does not know schema 1.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest, InvalidDigest, UnverifiableDigest

# What clients and registries are expected to support (distribution-spec, "Pushing Manifests").
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class MalformedManifest(TidegateError):
    """The document is not a manifest of the type it came as: nothing may be concluded from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What some content is, by media type, digest and size."""

    media_type: str
    digest: Digest
    size_bytes: int


class _Descriptor(msgspec.Struct):
    # May become a Content-Type and a row of the index: nothing that ends a field line, and 63 bits.
    mediaType: Annotated[str, msgspec.Meta(pattern=r"^[!-~]+/[ -~]+\Z", max_length=255)]
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Manifest(msgspec.Struct):
    schemaVersion: Literal[2]
    config: _Descriptor
    layers: list[_Descriptor]
    manifests: None = None
    mediaType: str | None = None
    subject: _Descriptor | None = None

    def parts(self) -> list[_Descriptor]:
        return [self.config, *self.layers]


class _Index(msgspec.Struct):
    schemaVersion: Literal[2]
    manifests: list[_Descriptor]
    config: None = None
    layers: None = None
    mediaType: str | None = None
    subject: _Descriptor | None = None

    def parts(self) -> list[_Descriptor]:
        return self.manifests


_SHAPES: dict[str, type[_Manifest] | type[_Index]] = {
    "application/vnd.oci.image.manifest.v1+json": _Manifest,
    "application/vnd.docker.distribution.manifest.v2+json": _Manifest,
    "application/vnd.oci.image.index.v1+json": _Index,
    "application/vnd.docker.distribution.manifest.list.v2+json": _Index,
}

MANIFEST_TYPES = tuple(_SHAPES)


def referenced_by(manifest: bytes, media_type: str) -> tuple[Descriptor, ...]:
    """What a manifest or index of that Content-Type is made of, in document order and without repetition.

    Content under an algorithm that cannot be verified here is left out. Other media types reference
    nothing. The subject is not among them: see `subject_of`. Raise MalformedManifest, and nothing else.
    """
    document = _read(manifest, media_type)
    if document is None:
        return ()
    described = (_described(part) for part in document.parts())
    return tuple(dict.fromkeys(descriptor for descriptor in described if descriptor is not None))


def subject_of(manifest: bytes, media_type: str) -> Descriptor | None:
    """The manifest that this one is about (a signature's image, say). Raise MalformedManifest.

    A registry accepts a subject that it does not have, so this proves nothing about a repository.
    """
    document = _read(manifest, media_type)
    return _described(document.subject) if document is not None and document.subject is not None else None


def _read(manifest: bytes, media_type: str) -> _Manifest | _Index | None:
    """The document, in the shape of its type; None for a type that is not known here."""
    media_type = media_type.partition(";")[0].strip().lower()
    shape = _SHAPES.get(media_type)
    if shape is None:
        return None
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise MalformedManifest(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = msgspec.json.decode(manifest, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedManifest(f"the document does not read as {media_type}: {error}") from error
    if document.mediaType not in (None, media_type):
        raise MalformedManifest(f"the document came as {media_type} and says that it is another type")
    return document


def _described(part: _Descriptor) -> Descriptor | None:
    try:
        digest = Digest.parse(part.digest)
    except UnverifiableDigest:
        return None
    except InvalidDigest as error:
        raise MalformedManifest(f"the manifest references something malformed: {error.cause}") from error
    return Descriptor(media_type=part.mediaType, digest=digest, size_bytes=part.size)
