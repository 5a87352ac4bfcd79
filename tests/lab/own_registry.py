"""A registry of one's own on the LAN: Debian's docker-registry, itself on the ports that clients dial.

With TLS by a CA that no node trusts, or without; several on one host, each port with a storage of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .host import Host
from .image import LAYOUT_TAG, Image, Recipe, build
from .node import Node
from .pki import Authority
from .process import Process
from .waiting import until

FOLDER = "/etc/own-registry"
_LINE = re.compile(
    r'(?P<peer>\S+) - - \[[^\]]*\] "(?P<method>[A-Z]+) (?P<path>/\S*) HTTP/1\.[01]" (?P<status>\d{3})'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that a docker-registry logged."""

    method: str
    path: str
    status: int
    peer: str


class OwnRegistry(Node):
    """It has a name in the lab's DNS, `domain_name`, or several, and a CA, `authority.anchor`."""

    def __init__(self, name: str, *domain_names: str):
        super().__init__(name)
        self.domain_name = domain_names[0]
        self.domain_names = domain_names
        self.authority = Authority(f"{name} CA")
        self._processes: dict[int, Process] = {}
        self._schemes: dict[int, str] = {}
        self._log_from: dict[int, int] = {}

    def serve(self, port: int, scheme: str = "https") -> None:
        """Start one on this port, and wait until it listens."""
        config = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": f"/srv/registry/{port}"}},
            "http": {"addr": f":{port}"},
        }
        if scheme == "https":
            server = self.authority.server(self.domain_names)
            self.write(f"{FOLDER}/server.crt", server.certificate)
            self.write(f"{FOLDER}/server.key", server.key, mode=0o600)
            tls = {"certificate": f"{FOLDER}/server.crt", "key": f"{FOLDER}/server.key"}
            config["http"] = {"addr": f":{port}", "tls": tls}
        self.write(f"{FOLDER}/{port}.yml", json.dumps(config))  # which is YAML
        process = self.spawn(["docker-registry", "serve", f"{FOLDER}/{port}.yml"], log=f"registry-{port}")
        until(lambda: port in self.listening(), f"the docker-registry on port {port} listens")
        self._processes[port], self._schemes[port], self._log_from[port] = process, scheme, 0

    def publish(self, recipe: Recipe, repository: str, *, port: int, tag: str = "1") -> Image:
        """Build the image and push it to the one on this port."""
        layout = f"/srv/images/{recipe.name}"
        image = build(recipe, self.path(layout))
        target = f"docker://127.0.0.1:{port}/{repository}:{tag}"
        options = ["--all", "--preserve-digests", "--dest-tls-verify=false"]
        self.run(["skopeo", "copy", "--quiet", *options, f"oci:{layout}:{LAYOUT_TAG}", target]).or_raise()
        self.forget(port)
        return image

    def asked(self, port: int) -> list[Asked]:
        """What the one on this port was asked since `publish` or `forget`."""
        lines = self._processes[port].log[self._log_from[port] :].splitlines()
        return [
            Asked(method=found["method"], path=found["path"], status=int(found["status"]), peer=found["peer"])
            for line in lines
            if (found := _LINE.search(line))
        ]

    def forget(self, port: int) -> None:
        self._log_from[port] = len(self._processes[port].log)

    def stop(self, port: int) -> None:
        """End the one on this port; its storage stays."""
        self._processes.pop(port).stop()


def allow_plain_http(host: Host, *authorities: str) -> None:
    """What an administrator tells clients of registries without TLS (ctr: `--plain-http`)."""
    tables = [f'[[registry]]\nlocation = "{authority}"\ninsecure = true\n' for authority in authorities]
    host.write("/etc/containers/registries.conf", "\n".join(tables))
    host.write("/etc/docker/daemon.json", json.dumps({"insecure-registries": authorities}))
