"""What happens to the store under the running agent, or before its start, and what pulls notice: nothing."""

from __future__ import annotations

import pytest

from lab import Fault, Image, Lab, Node, Recipe, Registry, ask
from lab.stored import STATE, stored_sizes, wrong_in_the_store
from lab.waiting import until

SMALL = "docker.io/library/small:1"
REGISTRY = "https://registry-1.docker.io/v2"
CLIENTS = pytest.mark.parametrize("client", ["podman", pytest.param("skopeo", marks=pytest.mark.slow)])


def mended_index(node: Node) -> str:
    """How a node's index, opened by SQLite itself, judges itself; empty when it is not there."""
    source = (
        "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA quick_check').fetchone()[0])"
    )
    return node.python(source, f"{STATE}/index.sqlite").or_raise().stdout.strip()


@CLIENTS
def test_a_disk_that_fills_up_in_the_middle_and_is_freed(node: Node, registry: Registry, client: str) -> None:
    """I1, C14: full while a layer comes: the pull ends well, uncached; freed: caching resumes by itself."""
    node.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", STATE]).or_raise()
    node.install_trust()
    agent = node.start_agent("[cache]\nmin_free = 0\n").wait_steering()
    image = registry.publish(
        Recipe(name="filling", layers=(6_000_000, 1_000), with_busybox=False), "library/filling"
    )
    registry.fault(Fault(on="bytes", bytes_per_s=4_000_000, times=None))
    pulling = node.start_pull(client, "docker.io/library/filling:1")

    def some_came() -> bool:
        partials = node.path(f"{STATE}/partial")
        return any(path.stat().st_size > 1_000_000 for path in partials.iterdir())

    until(some_came, "the layer is on its way")
    node.run(["sh", "-c", f"cat /dev/zero > {STATE}/ballast"])  # ends where the disk does
    pull = pulling.wait()
    assert pull.contents == image.contents, pull.stderr
    assert image.largest_layer not in stored_sizes(node)
    until(lambda: not list(node.path(f"{STATE}/partial").iterdir()), "nothing half-done is left")
    node.run(["rm", f"{STATE}/ballast"]).or_raise()
    registry.heal()

    assert node.pull(client, "docker.io/library/filling:1").contents == image.contents
    until(lambda: image.largest_layer in stored_sizes(node), "it stores again")
    assert not wrong_in_the_store(node)
    assert agent.metrics()["tidegate_cache_bytes"] == sum(stored_sizes(node).values())
    registry.forget()
    assert node.pull(client, "docker.io/library/filling:1").contents == image.contents
    assert registry.requests_for("bytes") == []


@CLIENTS
def test_a_state_directory_that_is_removed_comes_back(
    node: Node, registry: Registry, lab: Lab, client: str
) -> None:
    """I1: `rm -rf` of all of it under the running agent: pulls go on, and the next ones are hits again."""
    image = lab.images[SMALL]
    state = "/srv/state/tidegate"  # not a mount point, as /var/lib/tidegate is one here
    node.run(["mkdir", "-p", "/srv/state"]).or_raise()
    node.write("/etc/tidegate/agent.toml", f'state_dir = "{state}"\n')
    node.install_trust()
    agent = node.start_agent(f'state_dir = "{state}"\n').wait_steering()
    node.pull(client, SMALL)
    node.run(["rm", "-rf", state]).or_raise()
    for _ in range(2):
        assert node.pull(client, SMALL).contents == image.contents
    assert image.largest_layer in stored_sizes(node, state)
    registry.forget()

    assert node.pull(client, SMALL).contents == image.contents
    assert registry.requests_for("bytes") == []
    assert not wrong_in_the_store(node, state)
    assert agent.status()["steering"]["active"]

    def figures_are_right() -> bool:
        return agent.status()["cache"]["bytes"] == sum(stored_sizes(node, state).values())

    until(figures_are_right, "what was counted is what is there", within_s=15)


@pytest.mark.parametrize("size", [100, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 5000))])
def test_an_index_cut_short_under_the_running_agent(
    node: Node, registry: Registry, lab: Lab, size: int
) -> None:
    """I1: pulls go on, the blobs stay, and it is a sound index again."""
    node.install_trust()
    image = lab.images[SMALL]
    first = node.start_agent().wait_steering()
    node.pull("skopeo", SMALL)
    first.stop()  # then all of it is in the file, none in the log beside it
    agent = node.start_agent().wait_steering()
    node.run(["truncate", "-s", str(size), f"{STATE}/index.sqlite"]).or_raise()
    for client in ("skopeo", "podman"):
        assert node.pull(client, SMALL).contents == image.contents
    registry.forget()

    assert node.pull("podman", SMALL).contents == image.contents
    assert registry.requests_for("bytes") == []
    assert node.path(f"{STATE}/index.sqlite.damaged").exists(), "it noticed"
    assert mended_index(node) == "ok"
    assert not wrong_in_the_store(node)
    assert agent.status()["steering"]["active"]


@pytest.mark.parametrize("how", ["cut short", "removed", pytest.param("garbage", marks=pytest.mark.slow)])
def test_an_index_that_was_lost_is_rebuilt_from_the_blobs(
    node: Node, registry: Registry, lab: Lab, how: str
) -> None:
    """C14, C4: after the start a manifest by digest is a hit, of its type; tags and rights are asked for."""
    node.install_trust()
    agent = node.start_agent().wait_steering()
    image = lab.images[SMALL]
    node.pull("skopeo", SMALL)
    before = agent.status()["cache"]
    agent.stop()
    index = f"{STATE}/index.sqlite"
    match how:
        case "cut short":
            node.run(["truncate", "-s", "3000", index]).or_raise()
        case "garbage":
            node.write(index, "no index at all\n" * 1000)
        case _:
            node.run(["rm", index]).or_raise()
    agent = node.start_agent().wait_steering()

    def counted() -> bool:
        cache = agent.status()["cache"]
        return all(cache[key] == before[key] for key in ("bytes", "blobs"))

    until(counted, "all blobs are counted again")
    registry.forget()
    manifest = f"{REGISTRY}/library/small/manifests/{image.contents.manifest}"
    answer = ask(node, manifest)
    assert (answer.status, answer.cache) == (200, "hit")
    assert answer.header("Content-Type") == "application/vnd.oci.image.manifest.v1+json"
    assert ask(node, f"{REGISTRY}/library/small/manifests/{image.digest}").cache == "hit"
    assert node.pull("podman", SMALL).contents == image.contents
    assert registry.requests_for("bytes") == []
    assert not wrong_in_the_store(node)


def test_what_is_among_the_blobs_and_is_none_stays(node: Node, lab: Lab) -> None:
    """C14: the start touches nothing that it cannot identify, and says so."""
    foreign = [f"{STATE}/blobs/sha256/ab/notes.txt", f"{STATE}/blobs/sha256/README", f"{STATE}/mine"]
    for path in foreign:
        node.path(path).parent.mkdir(parents=True, exist_ok=True)
        node.write(path, "mine")
    node.install_trust()
    agent = node.start_agent().wait_steering()
    assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents

    until(lambda: "2 files among the blobs are none" in agent.log, "it says what it found")
    assert all(node.path(path).read_text() == "mine" for path in foreign)
    image: Image = lab.images[SMALL]
    assert image.largest_layer in stored_sizes(node)
