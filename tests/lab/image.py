"""Container images made of a static busybox and incompressible filler, as an OCI image layout.

Deterministic: the same `Recipe` gives the same digests in every run on machines with the same busybox.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
BUSYBOX = Path("/bin/busybox")
MOST_AT_ONCE = 128 << 20  # of random bytes: twice as many do not fit into the number they are made of
LAYOUT_TAG = "image"  # the name inside the layout; registries give their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to build: `layers` are the sizes of filler layers in bytes; several platforms make an index."""

    name: str
    layers: tuple[int, ...]
    platforms: tuple[str, ...] = ("amd64",)
    with_busybox: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The digests of one platform's image, as clients end up with them; layers in manifest order."""

    manifest: str
    config: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: `digest` is what its tag will point to (an index when there are several platforms)."""

    recipe: Recipe
    digest: str
    platforms: dict[str, Contents]
    sizes: dict[str, int]  # digest -> size in bytes, of everything

    @property
    def contents(self) -> Contents:
        """What a client on this machine should end up with."""
        return self.platforms["amd64"]

    @property
    def largest_layer(self) -> str:
        return max(self.contents.layers, key=lambda digest: self.sizes[digest])


# Layers: busybox (about 1 MB), one of 200 KiB, and one smaller than the 32 KiB tail that the agent holds.
SMALL = Recipe(name="small", layers=(200 << 10, 300), platforms=("amd64", "arm64"))
SINGLE = Recipe(name="single", layers=(150 << 10, 100))
LARGE = Recipe(name="large", layers=(100 << 20, 1000), with_busybox=False)


def build(recipe: Recipe, folder: Path) -> Image:
    """Write the image to `folder` as an OCI layout."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        sizes[f"sha256:{digest}"] = len(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    layers = [_busybox_layer()] if recipe.with_busybox else []
    layers += [_filler_layer(recipe.name, number, size) for number, size in enumerate(recipe.layers)]
    stored = [({"mediaType": LAYER, **blob(_gzip(tar))}, _sha256(tar)) for tar in layers]
    manifests, platforms = [], {}
    for platform in recipe.platforms:
        config = {"mediaType": CONFIG, **blob(_config(recipe, platform, [diff for _, diff in stored]))}
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer for layer, _ in stored],
        }
        manifest = blob(_json(body))
        manifests.append(
            {"mediaType": MANIFEST, **manifest, "platform": {"architecture": platform, "os": "linux"}}
        )
        platforms[platform] = Contents(
            manifest=str(manifest["digest"]),
            config=str(config["digest"]),
            layers=tuple(str(layer["digest"]) for layer, _ in stored),
        )
    top = manifests[0]
    if len(manifests) > 1:
        top = {
            "mediaType": INDEX,
            **blob(_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})),
        }
    entry = {**top, "annotations": {"org.opencontainers.image.ref.name": LAYOUT_TAG}}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    return Image(recipe=recipe, digest=str(top["digest"]), platforms=platforms, sizes=sizes)


def _config(recipe: Recipe, platform: str, diff_ids: Sequence[str]) -> bytes:
    return _json(
        {
            "created": "2024-01-01T00:00:00Z",
            "architecture": platform,
            "os": "linux",
            "config": {"Cmd": ["/bin/busybox", "echo", f"hello from {recipe.name}"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [{"created_by": "lab"} for _ in diff_ids],
        }
    )


def _busybox_layer() -> bytes:
    return _tar([("bin", None), ("bin/busybox", BUSYBOX.read_bytes())])


def _filler_layer(name: str, number: int, size: int) -> bytes:
    source = random.Random(f"{name}/{number}/{size}")
    pieces = [source.randbytes(min(MOST_AT_ONCE, size - at)) for at in range(0, size, MOST_AT_ONCE)]
    return _tar([(f"filler-{number}", b"".join(pieces))])


def _tar(files: Sequence[tuple[str, bytes | None]]) -> bytes:
    """A reproducible tar archive; content None makes a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            entry.mtime = 1_700_000_000
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content or b""))
    return archive.getvalue()


def _gzip(data: bytes) -> bytes:
    # Filler does not compress: storing it makes the 100 MB layer take a third of a second, not three.
    return gzip.compress(data, 0 if len(data) > 4 << 20 else 1, mtime=0)


def digest_of(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
