"""containerd on a node, and its two clients: `ctr`, and the kubelet's side of its CRI plugin.

They differ in who speaks to registries: with `ctr` that is the ctr process, new for each pull; with CRI it is
the daemon, which reads the system's trust store when it first needs it and never again. A CA that was
installed later takes a restart.

Content is shared between containerd's namespaces (`default` is ctr's, `k8s.io` is CRI's): the store is empty
only when both are, otherwise a pull fetches nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .host import Host
from .image import Contents, digest_of
from .process import Process
from .registry import User
from .waiting import until

SOCKET = "/run/containerd/containerd.sock"
CONFIG = "/etc/containerd/config.toml"
ROOT = "/srv/containerd"
BLOBS = f"{ROOT}/io.containerd.content.v1.content/blobs/sha256"
CTR_NAMESPACE, CRI_NAMESPACE = "default", "k8s.io"
CRI = Path(__file__).with_name("cri.py")
PLATFORM = ("linux", "amd64")
DEFAULTS = f"""version = 2
root = "{ROOT}"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
"""
EMPTY = f"""set -e
for namespace in {CTR_NAMESPACE} {CRI_NAMESPACE}; do
    ctr -n $namespace images ls -q | xargs -r ctr -n $namespace images rm --sync
    ctr -n $namespace content ls -q | xargs -r ctr -n $namespace content rm
done
"""


class Containerd:
    """A running containerd. `config` is appended to what its place in the lab needs."""

    def __init__(self, host: Host, config: str = ""):
        self._host = host
        host.write(CONFIG, DEFAULTS + config)
        self.process = self._start()

    def restart(self) -> None:
        """Stop it and start it again, with the same configuration and store: what makes it read new CAs."""
        self.process.stop()
        self.process = self._start()

    def _start(self) -> Process:
        process = self._host.spawn(["containerd", "--config", CONFIG], log="containerd")
        until(lambda: self._answers(process), "containerd answers", every_s=0.05)
        return process

    def _answers(self, process: Process) -> bool:
        if not process.running:
            raise RuntimeError(f"containerd ended with {process.wait()}:\n{process.log[-4000:]}")
        return self._host.path(SOCKET).exists() and self._host.run(["ctr", "version"]).ok


def ctr_pull(reference: str, login: User | None) -> list[str]:
    credentials = ["--user", f"{login.name}:{login.password}"] if login else []
    return ["ctr", "-n", CTR_NAMESPACE, "images", "pull", *credentials, reference]


def cri_pull(reference: str, login: User | None) -> list[str]:
    credentials = [login.name, login.password] if login else []
    return [sys.executable, "-P", str(CRI), SOCKET, reference, *credentials]


def empty(host: Host) -> None:
    """Take every image and its content away, so that the next pull fetches all of it."""
    host.run(["sh", "-c", EMPTY]).or_raise()


def stored(host: Host, namespace: str, reference: str) -> Contents:
    """What the content store holds under this name; digests computed from its bytes."""
    listed = host.run(["ctr", "-n", namespace, "images", "ls", f"name=={reference}"]).or_raise().stdout
    _, line = listed.splitlines()
    digest = next(word for word in line.split() if word.startswith("sha256:"))

    def blob(digest: str) -> Path:
        return host.path(f"{BLOBS}/{digest.removeprefix('sha256:')}")

    described = json.loads(blob(digest).read_text())
    for entry in described.get("manifests", []):
        if (entry["platform"]["os"], entry["platform"]["architecture"]) == PLATFORM:
            digest = entry["digest"]
            described = json.loads(blob(digest).read_text())
            break
    return Contents(
        manifest=digest_of(blob(digest)),
        config=digest_of(blob(described["config"]["digest"])),
        layers=tuple(digest_of(blob(layer["digest"])) for layer in described["layers"]),
    )
