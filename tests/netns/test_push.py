"""Pushes through the agent pass, unbuffered and unchanged; what they move is not served from before.

FEATURES C18; I8 (no body is held in memory).
"""

from __future__ import annotations

import json
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Agent, Image, Lab, Node, Recipe, Registry, User, ask, until
from lab.image import LAYOUT_TAG, build, digest_of

REGISTRY = "registry-1.docker.io"
STORAGE = "/srv/registry/docker.io/docker/registry/v2"
MIB = 1 << 20
MEMORY_MIB = 150


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


@pytest.fixture
def alice(registry: Registry) -> User:
    return registry.users["alice"]


@pytest.fixture
def stored(lab: Lab) -> Iterator[Path]:
    """Where the real registry keeps what it was sent, emptied of alice's pushes at the end."""
    storage = lab.internet.path(STORAGE)
    before = set((storage / "blobs/sha256").glob("*/*"))
    yield storage
    for blob in set((storage / "blobs/sha256").glob("*/*")) - before:
        shutil.rmtree(blob)
    shutil.rmtree(storage / "repositories/alice/pushed", ignore_errors=True)


def push(node: Node, user: User, layout: str, repository: str, tag: str = "1") -> None:
    """As somebody who has logged in does it."""
    secret = f"{user.name}:{user.password}"
    target = f"docker://docker.io/{repository}:{tag}"
    options = ["--quiet", "--all", "--preserve-digests", f"--dest-creds={secret}"]
    node.run(["skopeo", "copy", *options, f"oci:{layout}:{LAYOUT_TAG}", target], timeout_s=110).or_raise()


def built(node: Node, recipe: Recipe) -> tuple[str, Image]:
    layout = f"/srv/{recipe.name}"
    return layout, build(recipe, node.path(layout))


def memory_mib(node: Node, pid: int, field: str) -> float:
    """`VmRSS` or `VmHWM` (its peak) of a process."""
    lines = node.path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def push_token(node: Node, user: User, repository: str) -> str:
    url = f"https://auth.docker.io/token?service=registry.docker.io&scope=repository:{repository}:pull,push"
    answer = ask(node, url, "--user", f"{user.name}:{user.password}")
    token: str = json.loads(answer.body)["token"]
    return token


@pytest.mark.parametrize("mib", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_large_push_passes_through_without_filling_memory(
    node: Node, registry: Registry, agent: Agent, alice: User, stored: Path, mib: int
) -> None:
    """C18, I8: what the registry has in the end is what was pushed; the agent never held it."""
    layout, image = built(node, Recipe(name=f"push-{mib}", layers=(mib * MIB,), with_busybox=False))
    pid = agent.pid
    registry.forget()

    began = time.monotonic()
    push(node, alice, layout, "alice/pushed")
    took_s = time.monotonic() - began
    peak_mib, now_mib = (memory_mib(node, pid, field) for field in ("VmHWM", "VmRSS"))
    print(f"measured: {mib} MiB pushed in {took_s:.1f} s; agent {now_mib:.0f} MiB, peak {peak_mib:.0f} MiB")  # noqa: T201

    encoded = image.largest_layer.removeprefix("sha256:")
    assert digest_of(stored / f"blobs/sha256/{encoded[:2]}/{encoded}/data") == image.largest_layer
    link = stored / "repositories/alice/pushed/_manifests/tags/1/current/link"
    assert link.read_text() == image.digest
    assert {"POST", "PATCH", "PUT"} <= {request.method for request in registry.requests}
    assert agent.pid == pid
    assert peak_mib < MEMORY_MIB


@pytest.mark.parametrize("framing", ["chunked", "monolithic"])
def test_an_upload_reaches_the_registry_while_it_is_sent(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, stored: Path, framing: str
) -> None:
    """C18: nothing waits for the end of a body, however its length is told."""
    token = push_token(node, alice, "alice/pushed")
    started = ask(
        node,
        f"https://{REGISTRY}/v2/alice/pushed/blobs/uploads/",
        *("--request", "POST", "--header", f"Authorization: Bearer {token}"),
    )
    assert started.status == 202
    target = started.header("Location").removeprefix(f"https://{REGISTRY}")
    head = f"PATCH {target} HTTP/1.1\r\nHost: {REGISTRY}\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: application/octet-stream\r\n"
    head += (
        f"Content-Length: {8 * MIB}\r\n\r\n"
        if framing == "monolithic"
        else "Transfer-Encoding: chunked\r\n\r\n"
    )
    half = bytes(4 * MIB)
    before, after = (b"%x\r\n" % len(half), b"\r\n") if framing == "chunked" else (b"", b"")
    arrived = stored / "repositories/alice/pushed/_uploads"

    def arrived_bytes() -> int:
        return sum(data.stat().st_size for data in arrived.glob("*/data"))

    plain = node.connect(registry.addresses[REGISTRY][0], 443)
    context = ssl.create_default_context(cadata=node.path("/var/lib/tidegate/ca/ca.pem").read_text())
    with context.wrap_socket(plain, server_hostname=REGISTRY) as tls:
        tls.sendall(head.encode() + before + half + after)
        until(lambda: arrived_bytes() > 3 * MIB, "the first half in the registry")
        tls.sendall(before + half + after + (b"0\r\n\r\n" if framing == "chunked" else b""))
        answer = tls.recv(65536)

    assert answer.startswith(b"HTTP/1.1 202"), answer
    assert arrived_bytes() == 8 * MIB
    (patched,) = [request for request in registry.requests if request.method == "PATCH"]
    assert patched.header("Content-Length") == ([str(8 * MIB)] if framing == "monolithic" else [])


def test_a_pushed_tag_is_not_served_from_before(
    node: Node, registry: Registry, agent: Agent, alice: User, stored: Path
) -> None:
    """C18, C7: once the new image is pushed, the old one is not even served while the registry is dark."""
    old_layout, old = built(node, Recipe(name="old", layers=(100_000,)))
    new_layout, new = built(node, Recipe(name="new", layers=(100_001,)))
    reference = "docker.io/alice/pushed:1"
    push(node, alice, old_layout, "alice/pushed")
    assert node.pull("skopeo", reference).contents == old.contents
    push(node, alice, new_layout, "alice/pushed")

    registry.goes_dark()
    dark = node.pull("podman", reference)
    registry.comes_back()
    fresh = node.pull("skopeo", reference)
    registry.goes_dark()
    kept = node.pull("podman", reference)

    assert not dark.ok
    assert fresh.contents == new.contents
    assert kept.contents == new.contents


def test_a_push_without_the_right_to_is_refused_by_the_registry(
    node: Node, registry: Registry, agent: Agent, stored: Path
) -> None:
    """C18: whoever may push is the registry's to say."""
    layout, _ = built(node, Recipe(name="refused", layers=(1000,)))
    user = registry.users["bob"]

    with pytest.raises(AssertionError, match=r"denied|unauthorized|authentication required"):
        push(node, user, layout, "alice/pushed")

    assert not (stored / "repositories/alice/pushed/_manifests/tags").exists()
