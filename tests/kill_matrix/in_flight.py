"""Who is in the middle of what: starts a client, knows how it ended, and tries again.

Real clients run as in lab/client.py. Content for pushes is new each time: a registry is not sent what it has.
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Protocol

from lab import Image, Lab, Node, Process, Recipe, Registry, until
from lab.client import DOCKER_HUB
from lab.dockerd import DOCKER
from lab.image import LAYOUT_TAG, build

RAW = Path(__file__).with_name("raw.py")
AGAIN_S = 0.2
PUSHED_BYTES = 24 << 20
NEIGHBOUR = "eu.gcr.io"
REGISTRY_HOST = "registry-1.docker.io"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How something in flight ended; `at` is the monotonic clock."""

    well: bool
    how: str
    at: float


class InFlight(Protocol):
    """Something that a client has begun."""

    def end(self, timeout_s: float) -> End: ...

    def again(self) -> bool:
        """Do the same from the start; whether it ended well."""


class RawInFlight:
    """A raw client at its moment."""

    def __init__(self, node: Node, moment: str, host: str, *, listen_s: float = 0) -> None:
        self._node = node
        self._arguments = [sys.executable, "-P", str(RAW), moment, host]
        self._process = self._start(listen_s)

    def _start(self, listen_s: float) -> Process:
        process = self._node.spawn([*self._arguments, str(listen_s)], log="raw")
        until(lambda: "ready" in process.log or not process.running, "the raw client's moment")
        return process

    def end(self, timeout_s: float) -> End:
        return _told(self._process, timeout_s)

    def again(self) -> bool:
        return _told(self._start(AGAIN_S), 20).well


def _told(process: Process, timeout_s: float) -> End:
    with process:
        process.wait(timeout_s)
        return End(**json.loads(process.log.splitlines()[-1]))


class PullInFlight:
    """A real client that pulls."""

    def __init__(self, node: Node, client: str, reference: str, image: Image) -> None:
        self._node, self._client, self._reference, self._image = node, client, reference, image
        self._pulling = node.start_pull(client, reference)
        self._ended = _ended(self._pulling.process)

    def end(self, timeout_s: float) -> End:
        at = self._ended.result(timeout_s)
        pull = self._pulling.wait()
        return End(well=pull.brought(self._image), how=_last_words(pull.stderr), at=at)

    def again(self) -> bool:
        return self._node.pull(self._client, self._reference).brought(self._image)


class PushInFlight:
    """A real client that pushes an image that nobody has."""

    def __init__(self, node: Node, client: str, registry: Registry) -> None:
        number = next(_numbers)
        self._node = node
        self._registry = registry
        self._folder = f"/srv/push-{number}"
        recipe = Recipe(name=f"push-{number}", layers=(PUSHED_BYTES,), with_busybox=False)
        build(recipe, node.path(f"{self._folder}/image"))
        alice = registry.users["alice"]
        self._reference = f"docker.io/alice/private:push-{number}"
        self._env = {"HOME": self._folder}
        self._argv = PREPARE[client](node, self._folder, self._reference, f"{alice.name}:{alice.password}")
        self._process = node.spawn(self._argv, env=self._env, log=f"{client}-push")
        self._ended = _ended(self._process)

    def end(self, timeout_s: float) -> End:
        at = self._ended.result(timeout_s)
        with self._process as process:
            code = process.wait()
            return End(well=code == 0, how=_last_words(process.log) if code else "", at=at)

    def again(self) -> bool:
        return self._node.run(self._argv, env=self._env).ok


def _skopeo(node: Node, folder: str, reference: str, login: str) -> list[str]:
    layout = f"oci:{folder}/image:{LAYOUT_TAG}"
    return ["skopeo", "copy", "--quiet", "--dest-creds", login, layout, f"docker://{reference}"]


def _podman(node: Node, folder: str, reference: str, login: str) -> list[str]:
    podman = ["podman", "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
    podman += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    loaded = node.run([*podman, "pull", "--quiet", f"oci:{folder}/image"], env={"HOME": folder}).or_raise()
    return [*podman, "push", "--quiet", "--creds", login, loaded.stdout.strip(), f"docker://{reference}"]


def _archive(node: Node, folder: str, kind: str, reference: str) -> str:
    to = f"{kind}:{folder}/archive:{reference}"
    node.run(["skopeo", "copy", "--quiet", f"oci:{folder}/image:{LAYOUT_TAG}", to]).or_raise()
    return f"{folder}/archive"


def _ctr(node: Node, folder: str, reference: str, login: str) -> list[str]:
    node.run(["ctr", "images", "import", _archive(node, folder, "oci-archive", reference)]).or_raise()
    return ["ctr", "images", "push", "--user", login, reference]


def _dockerd(node: Node, folder: str, reference: str, login: str) -> list[str]:
    node.run([DOCKER, "load", "--input", _archive(node, folder, "docker-archive", reference)]).or_raise()
    user, _, password = login.partition(":")
    node.write(f"{folder}/.docker/config.json", json.dumps({"auths": {DOCKER_HUB: _basic(user, password)}}))
    return [DOCKER, "push", "--quiet", reference]


def _basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


PREPARE: dict[str, Callable[[Node, str, str, str], list[str]]] = {
    "skopeo": _skopeo,
    "podman": _podman,
    "ctr": _ctr,
    "dockerd": _dockerd,
}


def _ended(process: Process) -> Future[float]:
    """When it will have ended, looked at from a thread: who asks may be busy at that moment."""
    ended: Future[float] = Future()

    def wait() -> None:
        try:
            process.wait(90)
            ended.set_result(time.monotonic())
        except Exception as error:  # noqa: BLE001 (raised again by whoever asks)
            ended.set_exception(error)

    Thread(target=wait, daemon=True).start()
    return ended


def _last_words(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1][-160:] if lines else ""


DRIPPING = """
import socket, threading, time

def serve(client):
    with client:
        while True:
            time.sleep(0.02)
            client.sendall(b".")

server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def start_neighbour(lab: Lab) -> None:
    """A host on a steered address that speaks another protocol."""
    neighbour = lab.add_node("neighbour")
    neighbour.spawn(["python3", "-c", DRIPPING], log="neighbour")
    until(lambda: 443 in neighbour.listening(), "the neighbour listens")
    lab.resolver.answer(records={NEIGHBOUR: [interface.ip for interface in neighbour.interfaces]})
