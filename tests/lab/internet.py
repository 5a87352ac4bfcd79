"""Plays the lab's internet on a machine of its own: the registries, their token services and blob hosts.

    python -m lab.internet FOLDER      until it is told to end; READY=1 (sd_notify(3)) when it serves

What `Lab` does on a host of namespaces, for virtual machines, where the machine's own init starts it. Its CA
and images are made once and stay in FOLDER: `anchor.pem` is what nodes are to trust, `published.json` tells
what is there. It does not resolve names.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .image import SINGLE, SMALL, Contents, Image, Recipe, build
from .lab import DOCKER_IO, PRIVATE, QUAY_IO, TOOL
from .pki import Authority, Identity, token_signer
from .registry import CONTROL, backend_config, front_config, push_command
from .token_service import Signer
from .waiting import until

PLANS = (DOCKER_IO, QUAY_IO)
IMAGES = (
    (DOCKER_IO, SMALL, "library/small"),
    (DOCKER_IO, SINGLE, "library/single"),
    (DOCKER_IO, PRIVATE, "alice/private"),
    (QUAY_IO, TOOL, "team/tool"),
)
PUBLISHED = "published.json"


def make_identities(folder: Path) -> None:
    """A CA whose key is forgotten, what it signed for the registries' names, and the token signer."""
    authority, signer = Authority("Lab Internet CA"), token_signer()
    server = authority.server([host for plan in PLANS for host in plan.addresses])
    for name, pem in (
        ("server.crt", server.certificate),
        ("server.key", server.key),
        ("token.crt", signer.certificate),
        ("token.key", signer.key),
        ("anchor.pem", authority.anchor),  # last: it says that the others are there
    ):
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(pem)


def read_signer(folder: Path) -> Signer:
    token = Identity(certificate=(folder / "token.crt").read_bytes(), key=(folder / "token.key").read_bytes())
    return Signer(token)


def read_published(text: str) -> dict[str, Image]:
    """What `published.json` says: "registry/repository:tag" -> image."""
    return {reference: _image(value) for reference, value in json.loads(text).items()}


def _image(value: Mapping[str, Any]) -> Image:  # Any: a JSON object
    recipe = value["recipe"]
    return Image(
        recipe=Recipe(
            name=recipe["name"],
            layers=tuple(recipe["layers"]),
            platforms=tuple(recipe["platforms"]),
            with_busybox=recipe["with_busybox"],
        ),
        digest=value["digest"],
        platforms={
            name: Contents(manifest=each["manifest"], config=each["config"], layers=tuple(each["layers"]))
            for name, each in value["platforms"].items()
        },
        sizes=value["sizes"],
    )


def publish(folder: Path) -> None:
    """Build the images and push them to the processes that run."""
    signer = read_signer(folder)
    published = {}
    for plan, recipe, repository in IMAGES:
        layout = folder / "images" / recipe.name
        image = build(recipe, layout)
        subprocess.run(push_command(plan, signer, str(layout), repository, "1"), check=True)
        published[f"{plan.name}/{repository}:1"] = asdict(image)
    (folder / PUBLISHED).write_text(json.dumps(published))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    Path(CONTROL).parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "anchor.pem").exists():
        make_identities(folder)
    children = []
    for plan in PLANS:
        config = folder / f"{plan.name}.yml"
        config.write_text(backend_config(plan, str(folder / "token.crt")))
        children.append(subprocess.Popen(["docker-registry", "serve", config]))
    config = folder / "front.json"
    config.write_text(json.dumps(front_config(str(folder), PLANS)))
    children.append(subprocess.Popen([sys.executable, "-m", "lab.front", config]))
    for port in (*(plan.port for plan in PLANS), 443):
        until(lambda port=port: _listens(port), f"port {port} listens", within_s=600, every_s=0.2)  # type: ignore[misc]  # a default binds it
    if not (folder / PUBLISHED).exists():
        publish(folder)
    _notify("READY=1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.wait()  # none of them is to end
    sys.exit("a process of the internet ended; see its messages above")


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


if __name__ == "__main__":
    main()
