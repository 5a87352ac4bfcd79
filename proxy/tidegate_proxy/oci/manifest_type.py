"""The media type of a manifest that came without a Content-Type: image-spec, manifest.md and image-index.md.

A manifest of Docker's always names its type; one of OCI's may leave that to the Content-Type, but is told by
what it has. Schema 1 and artifacts of other types are not known. Pure.
"""

import msgspec

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, MalformedManifest, referenced_by

_IMAGE = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


class _Document(msgspec.Struct):
    schemaVersion: int
    mediaType: str | None = None
    manifests: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()


def manifest_type(document: bytes) -> str | None:
    """The media type by which the document reads as a manifest; None when it is none."""
    if not document.lstrip(b" \t\r\n").startswith(b"{"):
        return None
    try:
        read = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    media_type = read.mediaType or (_INDEX if bytes(read.manifests) else _IMAGE)
    if media_type not in MANIFEST_TYPES:
        return None
    try:
        referenced_by(document, media_type)
    except MalformedManifest:
        return None
    return media_type
