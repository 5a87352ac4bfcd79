"""C14: the cache keeps within its limits while real clients pull, and no pull notices."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from lab import Agent, Image, Lab, Node, Recipe, Registry
from lab.clock import Clock
from lab.stored import STATE, stored_sizes, wrong_in_the_store
from lab.waiting import until

MEGABYTE = 1_000_000
MAX_SIZE = 3 * MEGABYTE
CONFIG = f"[cache]\nmax_size = {MAX_SIZE}\nmin_free = 0\n"
REGISTRY = "https://registry-1.docker.io/v2"


def published(registry: Registry, name: str, *layers: int) -> Image:
    return registry.publish(Recipe(name=name, layers=layers, with_busybox=False), f"library/{name}")


def within(size: int, host: Node, state: str = STATE) -> Callable[[], bool]:
    return lambda: sum(stored_sizes(host, state).values()) <= size


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent(CONFIG).wait_steering()


@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_the_least_recently_used_image_goes(
    node: Node, registry: Registry, agent: Agent, client: str
) -> None:
    """C14, O1: by last use, down to nine tenths; the figures are those of the files; pulls are whole."""
    a, b, c = (published(registry, name, 900_000, 10_000) for name in ("a", "b", "c"))
    for name in ("a", "b", "c", "a"):
        node.pull(client, f"docker.io/library/{name}:1")
    d = published(registry, "d", 500_000)
    assert node.pull(client, "docker.io/library/d:1").contents == d.contents
    until(within(MAX_SIZE * 9 // 10, node), "it is within nine tenths of max_size")

    sizes = stored_sizes(node)
    assert b.largest_layer not in sizes
    assert {a.largest_layer, c.largest_layer, d.largest_layer} <= sizes.keys()
    assert {image.digest for image in (a, b, c, d)} <= sizes.keys(), "manifests are kept longer"
    metrics, cache = agent.metrics(), agent.status()["cache"]
    assert metrics["tidegate_cache_bytes"] == cache["bytes"] == sum(sizes.values())
    assert metrics["tidegate_cache_evicted_bytes_total"] == cache["evicted_bytes"] > 900_000
    assert (cache["blobs"], cache["max_bytes"]) == (len(sizes), MAX_SIZE)
    registry.forget()
    assert node.pull(client, "docker.io/library/b:1").contents == b.contents
    assert {request.path.rpartition("/")[2][:12] for request in registry.requests_for("bytes")}


def test_a_blob_larger_than_the_cache_is_served_and_not_kept(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """C14: it evicts nothing, and what fits beside it is kept."""
    kept = published(registry, "kept", 1_000_000)
    node.pull("skopeo", "docker.io/library/kept:1")
    large = published(registry, "large", MAX_SIZE + 1000, 500)
    for client in ("skopeo", "podman"):
        assert node.pull(client, "docker.io/library/large:1").contents == large.contents

    until(lambda: not list(node.path(f"{STATE}/partial").iterdir()), "the large one is gone")
    sizes = stored_sizes(node)
    assert large.largest_layer not in sizes
    assert {kept.largest_layer, *large.contents.layers} - {large.largest_layer} <= sizes.keys()
    assert agent.status()["cache"]["evicted_bytes"] == 0


# Asks for the URL with a window that holds little, reads on once the file is there, and says what it got.
SLOW_READER = """
import hashlib, os, socket, ssl, sys, time

path, go_on = sys.argv[1:]
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
sock.connect((socket.gethostbyname("registry-1.docker.io"), 443))
tls = ssl.create_default_context().wrap_socket(sock, server_hostname="registry-1.docker.io")
tls.sendall(f"GET {path} HTTP/1.1\\r\\nHost: registry-1.docker.io\\r\\n\\r\\n".encode())
answer = tls.makefile("rb")
print(answer.readline().split()[1].decode(), flush=True)
while not os.path.exists(go_on):
    time.sleep(0.01)
length = 0
while line := answer.readline().strip():
    if line.lower().startswith(b"content-length:"):
        length = int(line.partition(b":")[2])
print(hashlib.sha256(answer.read(length)).hexdigest(), flush=True)
"""


def test_a_slow_reader_of_a_cached_blob_is_not_broken(node: Node, registry: Registry, agent: Agent) -> None:
    """C14: it is passed over while a client reads it, however little that takes, and all around it goes."""
    image = published(registry, "slow", 2_600_000)
    node.pull("skopeo", "docker.io/library/slow:1")
    path = f"/v2/library/slow/blobs/{image.largest_layer}"
    reading = node.spawn([sys.executable, "-c", SLOW_READER, path, "/tmp/go-on"])
    until(lambda: "200" in reading.log, "it reads")
    for name in ("x", "y", "z"):
        other = published(registry, name, 1_000_000)
        assert node.pull("skopeo", f"docker.io/library/{name}:1").contents == other.contents
    until(lambda: agent.status()["cache"]["evicted_bytes"] > 1_000_000, "room was made")

    assert image.largest_layer in stored_sizes(node)
    node.write("/tmp/go-on", "")
    assert reading.wait(30) == 0
    assert f"sha256:{reading.log.split()[-1]}" == image.largest_layer


def test_a_central_tier_evicts_too(lab: Lab, registry: Registry) -> None:
    """C14, T1: docker-registry-proxy's CACHE_MAX_SIZE is a limit."""
    central = lab.add_central("central").start(env={"CACHE_MAX_SIZE": "2m"})
    state = "/srv/tidegate-central"
    assert "CACHE_MAX_SIZE" not in central.log
    images = [published(registry, name, 700_000) for name in ("a", "b", "c", "d")]
    for image, name in zip(images, "abcd", strict=True):
        url = f"{central.mirror}/v2/library/{name}/blobs/{image.largest_layer}?ns=docker.io"
        central.run(["curl", "-sSk", "--fail", "-o", "/dev/null", url]).or_raise()
    until(within((2 << 20) * 9 // 10, central, state), "it is within nine tenths of max_size")

    sizes = stored_sizes(central, state)
    assert [image.largest_layer in sizes for image in images] == [False, False, True, True]
    assert central.metrics()["tidegate_cache_bytes"] == sum(sizes.values())
    gone = sum(image.sizes[image.largest_layer] for image in images[:2])
    assert central.metrics()["tidegate_cache_evicted_bytes_total"] == gone


def test_the_cache_gives_way_to_other_programs(node: Node, registry: Registry) -> None:
    """C14, I1: others fill the disk: all is evicted, nothing is stored, pulls go on; then it stores again."""
    node.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", STATE]).or_raise()
    node.install_trust()
    agent = node.start_agent("[cache]\nmin_free = 2000000\n").wait_steering()
    image = published(registry, "yielding", 1_500_000)
    node.pull("skopeo", "docker.io/library/yielding:1")
    assert image.largest_layer in stored_sizes(node)
    node.run(["fallocate", "-l", "4800000", f"{STATE}/ballast"]).or_raise()
    until(lambda: image.largest_layer not in stored_sizes(node), "it gave way", within_s=15)
    node.run(["fallocate", "-l", "7000000", f"{STATE}/ballast"]).or_raise()
    until(lambda: not stored_sizes(node), "it gave way altogether", within_s=15)
    for client in ("skopeo", "podman"):
        assert node.pull(client, "docker.io/library/yielding:1").contents == image.contents
    assert not stored_sizes(node)
    assert "nothing is stored" in agent.log

    node.run(["rm", f"{STATE}/ballast"]).or_raise()

    def stores_again() -> bool:
        node.pull("skopeo", "docker.io/library/yielding:1")
        return image.largest_layer in stored_sizes(node)

    until(stores_again, "it stores again", within_s=20)
    assert not wrong_in_the_store(node)
    assert agent.metrics()["tidegate_cache_bytes"] == sum(stored_sizes(node).values())


@pytest.mark.slow
@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_a_stepped_clock_evicts_and_serves_nothing_wrongly(
    node: Node, registry: Registry, client: str
) -> None:
    """C14, C7: a day ahead, then a day back: pulls go on, and what goes is what was used least recently."""
    clock = Clock(node)
    node.install_trust()
    agent = node.start_agent(CONFIG, env=clock.env).wait_steering()
    images = {name: published(registry, name, 900_000) for name in "abc"}

    def pull(name: str) -> None:
        assert node.pull(client, f"docker.io/library/{name}:1").contents == images[name].contents

    def agents_clock_is(seconds: int) -> bool:
        node.run(["curl", "-sS", "-o", "/dev/null", f"{REGISTRY}/"])
        last = [json.loads(line) for line in agent.log.splitlines() if line.startswith("{")][-1]
        off = datetime.fromisoformat(last["timestamp"]) - datetime.now(UTC)
        return abs(off.total_seconds() - seconds) < 60

    for name in "abc":
        pull(name)
    for seconds, name in ((86_400, "a"), (-86_400, "b")):
        clock.step(seconds)
        until(lambda seconds=seconds: agents_clock_is(seconds), "the agent's clock was set")
        registry.forget()
        pull(name)
        assert registry.requests_for("bytes") == [], "it was a hit"
    images["d"] = published(registry, "d", 500_000)
    pull("d")
    until(within(MAX_SIZE * 9 // 10, node), "it is within nine tenths of max_size")

    kept = {name for name, image in images.items() if image.largest_layer in stored_sizes(node)}
    assert kept == {"a", "b", "d"}
    assert not wrong_in_the_store(node)
    for name in "abcd":
        pull(name)
    assert agent.status()["steering"]["active"]
