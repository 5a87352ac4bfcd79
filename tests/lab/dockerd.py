"""dockerd on a node, started as Debian's unit starts it but without bridge and packet filter rules.

The daemon speaks to registries, and reads the system's trust store once: see containerd.py. It keeps no
manifests: what its store tells is the digest that the tag had (of the index, when there is one), the
configuration's bytes, and the digests of the layers as it verified them while unpacking.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

from .containerd import SOCKET as CONTAINERD_SOCKET
from .host import Host
from .image import Contents, digest_of
from .process import Process
from .waiting import until

DOCKER = "/usr/bin/docker"  # of the daemon's own package: another in the search path may be too new for it
ROOT = "/srv/docker"
SOCKET = "/run/docker.sock"
DRIVER = "overlay2"
EMPTY = f"{DOCKER} images -q --no-trunc | sort -u | xargs -r {DOCKER} rmi -f"
WITHOUT_RULES = ("--iptables=false", "--ip6tables=false", "--bridge=none")
COMMAND = (
    "dockerd",
    *("--containerd", CONTAINERD_SOCKET),
    *("--data-root", ROOT),
    *("--exec-root", "/run/docker"),
    *("--pidfile", "/run/docker.pid"),
    *("--host", f"unix://{SOCKET}"),
    *("--storage-driver", DRIVER),
    *WITHOUT_RULES,
)


class Dockerd:
    """A running dockerd. It needs a running containerd on the same host."""

    def __init__(self, host: Host, env: Mapping[str, str] = {}, *, iptables: bool = False):
        """`iptables`: with a bridge and the packet filter rules that dockerd writes for it."""
        self._host = host
        self._command = [word for word in COMMAND if not iptables or word not in WITHOUT_RULES]
        self._env = env
        self.process = self._start()

    def restart(self) -> None:
        """Stop it and start it again, with the same store: what makes it read new CAs."""
        self.process.stop()
        self.process = self._start()

    def reload(self) -> None:
        """SIGHUP: it reads daemon.json again, and not the trust store."""
        self.process.kill(signal.SIGHUP)

    def _start(self) -> Process:
        process = self._host.spawn(self._command, env=self._env, log="dockerd")
        until(lambda: self._answers(process), "dockerd answers", within_s=20, every_s=0.05)
        return process

    def _answers(self, process: Process) -> bool:
        if not process.running:
            raise RuntimeError(f"dockerd ended with {process.wait()}:\n{process.log[-4000:]}")
        return self._host.path(SOCKET).exists() and self._host.run([DOCKER, "version"]).ok


def pull(reference: str) -> list[str]:
    return [DOCKER, "pull", "--quiet", reference]


def empty(host: Host) -> None:
    """Take every image away, so that the next pull fetches all of it."""
    host.run(["sh", "-c", EMPTY]).or_raise()


def stored(host: Host, reference: str) -> Contents:
    """What dockerd holds under this name. `manifest` is the digest it found the tag to have."""
    listed = host.run([DOCKER, "image", "inspect", reference]).or_raise().stdout
    (image,) = json.loads(listed)
    (repository_digest,) = image["RepoDigests"]
    images = host.path(f"{ROOT}/image/{DRIVER}")
    config = images / "imagedb/content/sha256" / image["Id"].removeprefix("sha256:")
    layers = []
    for diff_id in json.loads(config.read_text())["rootfs"]["diff_ids"]:
        known = images / "distribution/v2metadata-by-diffid/sha256" / diff_id.removeprefix("sha256:")
        layers.append(json.loads(known.read_text())[-1]["Digest"])
    return Contents(
        manifest=repository_digest.partition("@")[2],
        config=digest_of(config),
        layers=tuple(layers),
    )
