"""Descriptors, and what a manifest references: OCI image-spec, descriptor.md, manifest.md and image-index.md.

`referenced_by` reads an image manifest or an index (the Docker types too) and returns what has to
exist beside it: config and layers, or manifests. It is strict, because what it returns is taken as
the registry's word that a repository holds these digests. A document that says it is another type
than its Content-Type, or that is a manifest and an index at once, is refused (CVE-2021-41190).

This module does not verify digests or sizes, does not fetch, and does not know schema 1.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from tidegate_core.errors import TidegateError
from tidegate_proxy.digest import Digest, InvalidDigest, UnverifiableDigest

_MANIFESTS = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
# What registries accept at most when a manifest is pushed (distribution-spec, "Pushing Manifests").
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
    mediaType: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0)]


class _Document(msgspec.Struct):
    """A manifest or an index: the fields that reference something, of either."""

    schemaVersion: int
    mediaType: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None


_DOCUMENT = msgspec.json.Decoder(_Document)


def referenced_by(manifest: bytes, media_type: str) -> tuple[Descriptor, ...]:
    """What a manifest or index of that Content-Type is made of, in document order and without repetition.

    Content under an algorithm that cannot be verified here is left out. Other media types reference
    nothing. The subject is not among them: see `subject_of`. Raise MalformedManifest, and nothing else.
    """
    document = _read(manifest, media_type)
    if document is None:
        return ()
    parts = document.manifests if document.config is None else [document.config, *(document.layers or ())]
    described = (_described(part) for part in parts or ())
    return tuple(dict.fromkeys(descriptor for descriptor in described if descriptor is not None))


def subject_of(manifest: bytes, media_type: str) -> Descriptor | None:
    """The manifest that this one is about (a signature's image, say). Raise MalformedManifest.

    A registry must accept a subject that it does not have, so this proves nothing about a repository.
    """
    document = _read(manifest, media_type)
    return _described(document.subject) if document is not None and document.subject is not None else None


def _read(manifest: bytes, media_type: str) -> _Document | None:
    """The document, its shape checked against its type; None for a type that is not known here."""
    media_type = media_type.partition(";")[0].strip().lower()
    if media_type not in _MANIFESTS | _INDEXES:
        return None
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise MalformedManifest(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = _DOCUMENT.decode(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedManifest(f"the manifest is not a valid {media_type}: {error}") from error
    if document.schemaVersion != 2:
        raise MalformedManifest(f"the manifest has schema version {document.schemaVersion}, not 2")
    if document.mediaType not in (None, media_type):
        raise MalformedManifest(f"the manifest came as {media_type} and says that it is another type")
    is_manifest = document.config is not None and document.layers is not None
    is_index = document.manifests is not None
    if (is_manifest, is_index) != (media_type in _MANIFESTS, media_type in _INDEXES) or (
        is_index and (document.config is not None or document.layers is not None)
    ):
        raise MalformedManifest(
            f"the manifest does not have the fields of a {media_type}, or has another type's"
        )
    return document


def _described(part: _Descriptor) -> Descriptor | None:
    try:
        digest = Digest.parse(part.digest)
    except UnverifiableDigest:
        return None
    except InvalidDigest as error:
        raise MalformedManifest(f"the manifest references something malformed: {error.cause}") from error
    return Descriptor(media_type=part.mediaType, digest=digest, size_bytes=part.size)
