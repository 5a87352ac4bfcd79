"""What a registry must have had in a repository before it took a manifest there: its config and its layers.

That a manifest was accepted is taken as proof that the repository holds these, so whoever can push a
manifest must not be able to make it name what the registry did not look for. Left out is therefore what
registries accept unseen: a subject (distribution-spec, "Pushing Manifests with Subject"), the children of
an index (which may be sparse), and layers that are distributed elsewhere (image-spec, layer.md; `urls`). A
document that two JSON parsers may read differently, by a key that comes twice or in other letters, proves
nothing: the registry may have read the other one.

Pure. This module does not verify digests.
"""

import json

from tidegate_proxy.oci.descriptor import MalformedManifest, referenced_by
from tidegate_proxy.oci.digest import Digest

_LARGEST_BYTES = 512 * 1024
_MOST_PARTS = 1024
_MANIFESTS = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_MEANT = {
    key.casefold(): key
    for key in ("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "urls")
}


class _Ambiguous(Exception):
    """Parsers may disagree about the document."""


def held_parts(manifest: bytes, media_type: str) -> tuple[Digest, ...]:
    """The digests that the manifest proves to be held beside it; none for what is no plain image manifest."""
    if media_type.partition(";")[0].strip().lower() not in _MANIFESTS or len(manifest) > _LARGEST_BYTES:
        return ()
    try:
        parts = referenced_by(manifest, media_type)
        elsewhere = _elsewhere(manifest)
    except (MalformedManifest, _Ambiguous):
        return ()
    if len(parts) > _MOST_PARTS:
        return ()
    return tuple(part.digest for part in parts if str(part.digest) not in elsewhere)


def _elsewhere(manifest: bytes) -> set[str]:
    """The digests of layers that the registry need not have; raises _Ambiguous."""
    try:
        document = json.loads(manifest, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise _Ambiguous from error
    return {
        part["digest"] for part in document["layers"] if part.get("urls") or _is_foreign(part["mediaType"])
    }


def _is_foreign(media_type: str) -> bool:
    lower = media_type.lower()
    return "nondistributable" in lower or ".foreign." in lower


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    folded = [key.casefold() for key, _ in pairs]
    if len(set(folded)) != len(folded):
        raise _Ambiguous
    if any(_MEANT.get(name, key) != key for name, (key, _) in zip(folded, pairs, strict=True)):
        raise _Ambiguous
    return dict(pairs)
