"""Signed manifests of schema 1, whose digest is that of what was signed (distribution, manifest-v2-1.md).

The signatures stand inside the document (libtrust's JSON signatures): each says how many octets at the front,
and which at the end, are the signed payload's own. Pure. This module verifies no signature.
"""

import json
from base64 import urlsafe_b64decode
from typing import Any

SIGNED_TYPE = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def is_signed(media_type: str) -> bool:
    """Whether a manifest of that Content-Type has signatures in it."""
    return media_type.partition(";")[0].strip().lower() == SIGNED_TYPE


def payload(manifest: bytes) -> bytes | None:
    """What was signed; None for what is no signed manifest."""
    try:
        document: Any = json.loads(manifest)  # Any: whatever JSON says, read with suspicion
        protected = json.loads(_decoded(document["signatures"][0]["protected"]))
        length, tail = protected["formatLength"], _decoded(protected["formatTail"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if not isinstance(length, int) or not 0 <= length <= len(manifest):
        return None
    return manifest[:length] + tail


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
