"""OCI artifacts: manifests whose configuration and layers are no image's.

OCI image-spec, manifest.md, "Guidelines for Artifact Usage". Charts, signatures and what `oras push` makes
are of this shape; a `subject` makes a manifest a referrer.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

from .image import MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What is to be published; `layers` are media types with sizes in bytes, filled deterministically."""

    name: str
    config_type: str
    config: str
    layers: tuple[tuple[str, int], ...]
    more: dict[str, Any] = field(default_factory=dict)  # Any: other members of the manifest, JSON

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """The configuration, then the layers."""
        seeds = (random.Random(f"{self.name}/{number}") for number in range(len(self.layers)))
        fillings = (seed.randbytes(size) for seed, (_, size) in zip(seeds, self.layers, strict=True))
        return (self.config.encode(), *fillings)

    @property
    def manifest(self) -> bytes:
        types = (self.config_type, *(media_type for media_type, _ in self.layers))
        config, *layers = (
            {"mediaType": media_type, "digest": digest_of_bytes(blob), "size": len(blob)}
            for media_type, blob in zip(types, self.blobs, strict=True)
        )
        body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **self.more}
        return json.dumps(body, separators=(",", ":")).encode()

    @property
    def blob_digests(self) -> tuple[str, ...]:
        return tuple(digest_of_bytes(blob) for blob in self.blobs)

    @property
    def digest(self) -> str:
        return digest_of_bytes(self.manifest)


def digest_of_bytes(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
