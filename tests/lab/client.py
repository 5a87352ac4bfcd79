"""The real clients, run on a node as a user would run them, and what they ended up with.

A client's storage is fresh for each pull unless the scenario names one to keep. Digests are computed from the
bytes a client stored, or are those its own storage computed while unpacking (containers/storage keeps no
tarballs). Retries and time-outs are the client's own: nothing is configured but the storage's place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .host import Host
from .image import Contents
from .process import Process
from .registry import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """How a pull ended; `contents` is None when the client failed."""

    client: str
    reference: str
    exit_code: int
    duration_s: float
    stderr: str  # everything the client printed
    contents: Contents | None

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How one client pulls: `command(reference, storage)` is its argv, `stored(storage)` what came."""

    name: str
    command: Callable[[str, str], list[str]] = field(repr=False)
    stored: Callable[[Path], Contents] = field(repr=False)


class Pulling:
    """A pull under way."""

    def __init__(self, client: Client, reference: str, process: Process, storage: Path, *, keep: bool):
        self.process = process
        self._client = client
        self._reference = reference
        self._storage = storage
        self._keep = keep

    def wait(self, timeout_s: float = 90) -> Pull:
        """The pull's end. TimeoutError (with the client killed) when it hangs."""
        try:
            exit_code = self.process.wait(timeout_s)
            return Pull(
                client=self._client.name,
                reference=self._reference,
                exit_code=exit_code,
                duration_s=self.process.duration_s,
                stderr=self.process.log,
                contents=self._client.stored(self._storage / "storage") if exit_code == 0 else None,
            )
        finally:
            self.process.close()
            if not self._keep:
                shutil.rmtree(self._storage, ignore_errors=True)


def start_pull(
    host: Host,
    client: Client,
    reference: str,
    *,
    login: User | None = None,
    storage: str = "",
    env: Mapping[str, str] = {},
) -> Pulling:
    """Start a client. `storage` names a storage that later pulls can use again."""
    number = next(n for n in range(1, 100_000) if not host.path(f"/srv/pull-{n}").exists())
    folder = f"/srv/storage-{storage}" if storage else f"/srv/pull-{number}"
    host.path(folder).mkdir(exist_ok=True)
    if login is not None:
        secret = base64.b64encode(f"{login.name}:{login.password}".encode()).decode()
        registry = reference.partition("/")[0]
        host.write(f"{folder}/auth.json", json.dumps({"auths": {registry: {"auth": secret}}}), mode=0o600)
        env = {"REGISTRY_AUTH_FILE": f"{folder}/auth.json", **env}
    process = host.spawn(
        client.command(reference, f"{folder}/storage"), env={"HOME": folder, **env}, log=client.name
    )
    return Pulling(client, reference, process, host.path(folder), keep=bool(storage))


def _skopeo(transport: str, stored: Callable[[Path], Contents]) -> Client:
    suffix = ":image" if transport == "oci" else ""

    def command(reference: str, storage: str) -> list[str]:
        return ["skopeo", "copy", "--quiet", f"docker://{reference}", f"{transport}:{storage}{suffix}"]

    return Client(
        name="skopeo" if transport == "dir" else f"skopeo-{transport}", command=command, stored=stored
    )


def _containers_storage(program: str, driver: str) -> Client:
    def command(reference: str, storage: str) -> list[str]:
        places = ["--root", storage, "--runroot", f"{storage}-run", "--storage-driver", driver]
        quirks = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"] if program == "podman" else []
        return [program, *places, *quirks, "pull", "--quiet", reference]

    def stored(storage: Path) -> Contents:
        images = storage / f"{driver}-images"
        (image,) = json.loads((images / "images.json").read_text())
        layers = {
            layer["id"]: layer for layer in json.loads((storage / f"{driver}-layers/layers.json").read_text())
        }
        chain = []
        layer_id = image["layer"]
        while layer_id:
            chain.append(layers[layer_id]["compressed-diff-digest"])
            layer_id = layers[layer_id].get("parent")
        config = f"sha256:{image['id']}"
        return Contents(
            manifest=_digest_of(images / image["id"] / "manifest"),
            config=_digest_of(images / image["id"] / f"={base64.b64encode(config.encode()).decode()}"),
            layers=tuple(reversed(chain)),
        )

    return Client(name=program if driver == "vfs" else f"{program}-{driver}", command=command, stored=stored)


def _dir_contents(storage: Path) -> Contents:
    return _contents(storage / "manifest.json", lambda encoded: storage / encoded)


def _layout_contents(storage: Path) -> Contents:
    blobs = storage / "blobs/sha256"
    (entry,) = json.loads((storage / "index.json").read_text())["manifests"]
    return _contents(blobs / entry["digest"].removeprefix("sha256:"), lambda encoded: blobs / encoded)


def _contents(manifest: Path, blob: Callable[[str], Path]) -> Contents:
    described = json.loads(manifest.read_text())

    def digest(descriptor: dict[str, str]) -> str:
        return _digest_of(blob(descriptor["digest"].removeprefix("sha256:")))

    return Contents(
        manifest=_digest_of(manifest),
        config=digest(described["config"]),
        layers=tuple(digest(layer) for layer in described["layers"]),
    )


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        _skopeo("dir", _dir_contents),
        _skopeo("oci", _layout_contents),
        _containers_storage("podman", "vfs"),
        _containers_storage("podman", "overlay"),
        _containers_storage("buildah", "vfs"),
    )
}
