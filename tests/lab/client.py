"""The real clients, run on a node as a user would run them, and what they ended up with.

A client's storage is fresh for each pull unless the scenario names one to keep; a daemon has a single one,
which is emptied instead, or left alone. Digests are computed from the bytes a client stored, or are those its
own storage computed while unpacking (containers/storage and dockerd keep no tarballs). Retries and time-outs
are the client's own: nothing is configured but the storage's place.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from . import containerd, dockerd
from .host import Host
from .image import Contents, Image, digest_of
from .process import Process
from .registry import User

Daemon = Literal["containerd", "dockerd"]
DOCKER_HUB = "https://index.docker.io/v1/"  # docker.io's name in the docker command line's configuration


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

    def brought(self, image: Image) -> bool:
        """Whether it ended well, with exactly the image's content for this machine."""
        contents = image.contents
        if self.client == "dockerd":  # keeps the digest of the tag, not of the manifest behind it
            contents = replace(contents, manifest=image.digest)
        return self.ok and self.contents == contents


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How one client pulls.

    `command(reference, storage, login)` is its argv, `stored(host, storage, reference)` what came.
    `daemon` is the one that must run for it; `empty(host)` empties that daemon's only storage.
    """

    name: str
    command: Callable[[str, str, User | None], list[str]] = field(repr=False)
    stored: Callable[[Host, str, str], Contents] = field(repr=False)
    daemon: Daemon | None = None
    empty: Callable[[Host], None] | None = field(default=None, repr=False)


class Pulling:
    """A pull under way."""

    def __init__(
        self, host: Host, client: Client, reference: str, process: Process, folder: str, *, keep: bool
    ):
        self.process = process
        self._host = host
        self._client = client
        self._reference = reference
        self._folder = folder
        self._keep = keep

    def wait(self, timeout_s: float = 90) -> Pull:
        """The pull's end. TimeoutError (with the client killed) when it hangs."""
        try:
            exit_code = self.process.wait(timeout_s)
            contents = None
            if exit_code == 0:
                contents = self._client.stored(self._host, f"{self._folder}/storage", self._reference)
            return Pull(
                client=self._client.name,
                reference=self._reference,
                exit_code=exit_code,
                duration_s=self.process.duration_s,
                stderr=self.process.log,
                contents=contents,
            )
        finally:
            self.process.close()
            if not self._keep:
                self._host.remove(self._folder)


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
    if client.empty is not None and not storage:
        client.empty(host)
    if login is not None:
        registry = reference.partition("/")[0]
        host.write(f"{folder}/auth.json", _credentials(registry, login), mode=0o600)
        docker_name = DOCKER_HUB if registry == "docker.io" else registry
        host.write(f"{folder}/.docker/config.json", _credentials(docker_name, login), mode=0o600)
        env = {"REGISTRY_AUTH_FILE": f"{folder}/auth.json", **env}
    process = host.spawn(
        client.command(reference, f"{folder}/storage", login), env={"HOME": folder, **env}, log=client.name
    )
    return Pulling(host, client, reference, process, folder, keep=bool(storage))


def _credentials(registry: str, login: User) -> str:
    secret = base64.b64encode(f"{login.name}:{login.password}".encode()).decode()
    return json.dumps({"auths": {registry: {"auth": secret}}})


def _skopeo(transport: str, contents: Callable[[Path], Contents]) -> Client:
    suffix = ":image" if transport == "oci" else ""

    def command(reference: str, storage: str, login: User | None) -> list[str]:
        return ["skopeo", "copy", "--quiet", f"docker://{reference}", f"{transport}:{storage}{suffix}"]

    def stored(host: Host, storage: str, reference: str) -> Contents:
        return contents(host.path(storage))

    return Client(
        name="skopeo" if transport == "dir" else f"skopeo-{transport}", command=command, stored=stored
    )


def _containers_storage(program: str, driver: str) -> Client:
    def command(reference: str, storage: str, login: User | None) -> list[str]:
        places = ["--root", storage, "--runroot", f"{storage}-run", "--storage-driver", driver]
        quirks = ["--cgroup-manager", "cgroupfs", "--events-backend", "none"] if program == "podman" else []
        return [program, *places, *quirks, "pull", "--quiet", reference]

    def stored(host: Host, storage: str, reference: str) -> Contents:
        images = host.path(storage) / f"{driver}-images"
        (image,) = json.loads((images / "images.json").read_text())
        known = json.loads((host.path(storage) / f"{driver}-layers/layers.json").read_text())
        layers = {layer["id"]: layer for layer in known}
        chain = []
        layer_id = image["layer"]
        while layer_id:
            chain.append(layers[layer_id]["compressed-diff-digest"])
            layer_id = layers[layer_id].get("parent")
        config = f"sha256:{image['id']}"
        return Contents(
            manifest=digest_of(images / image["id"] / "manifest"),
            config=digest_of(images / image["id"] / f"={base64.b64encode(config.encode()).decode()}"),
            layers=tuple(reversed(chain)),
        )

    return Client(name=program if driver == "vfs" else f"{program}-{driver}", command=command, stored=stored)


def _containerd(name: str, namespace: str, argv: Callable[[str, User | None], list[str]]) -> Client:
    def command(reference: str, storage: str, login: User | None) -> list[str]:
        return argv(reference, login)

    def stored(host: Host, storage: str, reference: str) -> Contents:
        return containerd.stored(host, namespace, reference)

    return Client(name=name, command=command, stored=stored, daemon="containerd", empty=containerd.empty)


def _dockerd() -> Client:
    def command(reference: str, storage: str, login: User | None) -> list[str]:
        return dockerd.pull(reference)

    def stored(host: Host, storage: str, reference: str) -> Contents:
        return dockerd.stored(host, reference)

    return Client(name="dockerd", command=command, stored=stored, daemon="dockerd", empty=dockerd.empty)


def _dir_contents(storage: Path) -> Contents:
    return _contents(storage / "manifest.json", lambda encoded: storage / encoded)


def _layout_contents(storage: Path) -> Contents:
    blobs = storage / "blobs/sha256"
    (entry,) = json.loads((storage / "index.json").read_text())["manifests"]
    return _contents(blobs / entry["digest"].removeprefix("sha256:"), lambda encoded: blobs / encoded)


def _contents(manifest: Path, blob: Callable[[str], Path]) -> Contents:
    described = json.loads(manifest.read_text())

    def digest(descriptor: dict[str, str]) -> str:
        return digest_of(blob(descriptor["digest"].removeprefix("sha256:")))

    return Contents(
        manifest=digest_of(manifest),
        config=digest(described["config"]),
        layers=tuple(digest(layer) for layer in described["layers"]),
    )


CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        _skopeo("dir", _dir_contents),
        _skopeo("oci", _layout_contents),
        _containers_storage("podman", "vfs"),
        _containers_storage("podman", "overlay"),
        _containers_storage("buildah", "vfs"),
        _containerd("ctr", containerd.CTR_NAMESPACE, containerd.ctr_pull),
        _containerd("cri", containerd.CRI_NAMESPACE, containerd.cri_pull),
        _dockerd(),
    )
}
