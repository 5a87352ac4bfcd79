"""The lab's registry as an origin for cold blobs: as fast as it is, or behind a link of 100 MB/s.

The link is shaped where it really is, at the interface of the host that plays the internet (tc-tbf(8)), so
that all transfers share it, as they would share a line. This module measures nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from peer import Lab, Node

from lab import Image, Recipe

REGISTRY = "registry-1.docker.io"
LIMIT_MB_S = 100


@dataclass(frozen=True, slots=True)
class ColdBlob:
    """One blob that no cache has, in a public repository."""

    image: Image
    repository: str

    @property
    def digest(self) -> str:
        return self.image.largest_layer

    @property
    def encoded(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def size_bytes(self) -> int:
        return self.image.sizes[self.digest]

    @property
    def path(self) -> str:
        return f"/v2/{self.repository}/blobs/{self.digest}"


def publish(lab: Lab, name: str, size_bytes: int) -> ColdBlob:
    """Push an image with one large layer; `name` makes it another blob than all others."""
    repository = f"library/{name}"
    recipe = Recipe(name=name, layers=(size_bytes,), with_busybox=False)
    return ColdBlob(lab.registry.publish(recipe, repository), repository)


def limit(lab: Lab) -> None:
    """From now on the registry's side of the line gives 100 MB/s to all together."""
    rate = ["rate", f"{LIMIT_MB_S * 8}mbit", "burst", "1mb", "latency", "50ms"]
    lab.internet.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate]).or_raise()


def unlimit(lab: Lab) -> None:
    lab.internet.run(["tc", "qdisc", "del", "dev", "eth0", "root"]).or_raise()


def token(node: Node, repository: str) -> str:
    """An anonymous token, as every client gets one before its first blob."""
    url = f"https://auth.docker.io/token?service=registry.docker.io&scope=repository:{repository}:pull"
    return str(json.loads(node.run(["curl", "--silent", "--fail", url]).or_raise().stdout)["token"])


def sent_bytes(lab: Lab, blob: ColdBlob) -> tuple[int, int]:
    """How many transfers of the blob the registry began since `forget`, and the bytes that it sent."""
    reads = [each for each in lab.registry.requests_for("bytes") if blob.encoded in each.path]
    return len(reads), sum(each.sent_bytes or 0 for each in reads)
