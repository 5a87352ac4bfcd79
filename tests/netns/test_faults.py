"""Registries that fail, lie or corrupt, and disks that are full, met by clients through the agent."""

from __future__ import annotations

import json

import pytest

from lab import Fault, Lab, Node, Recipe, Registry

REFERENCE = "docker.io/library/small:1"
STORE = "/var/lib/tidegate/blobs"
SINGLE_LAYER = Recipe(name="layer", layers=(600_000,), with_busybox=False)
TINY_LAYER = Recipe(name="tiny", layers=(5_000,), with_busybox=False)


@pytest.fixture
def steered(node: Node) -> Node:
    node.install_trust()
    node.start_agent().wait_steering()
    return node


def stored(node: Node) -> set[str]:
    """The digests in the node's store."""
    found = node.run(["find", STORE, "-type", "f", "-printf", "%f\n"]).or_raise()
    return {f"sha256:{name}" for name in found.stdout.split()}


def curl(node: Node, url: str, *options: str) -> tuple[int, int, str]:
    """curl's exit code, the HTTP status, and the value of X-Tidegate-Cache."""
    form = '{"status": %{http_code}, "cache": "%header{x-tidegate-cache}"}'
    done = node.run(["curl", "-sS", "-o", "/dev/null", "--max-time", "20", "-w", form, *options, url])
    said = json.loads(done.stdout[done.stdout.index("{") :])
    return done.exit_code, said["status"], said["cache"]


@pytest.mark.parametrize(
    ("client", "chunked"),
    [
        ("skopeo", False),
        ("skopeo", True),
        pytest.param("podman", False, marks=pytest.mark.slow),
        pytest.param("podman", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("recipe", "place"),
    [(SINGLE_LAYER, "first"), (SINGLE_LAYER, "middle"), (SINGLE_LAYER, "last"), (TINY_LAYER, "middle")],
    ids=["first", "middle", "last", "smaller than the tail"],
)
def test_a_corrupted_layer_never_completes_and_never_enters_the_store(
    steered: Node, registry: Registry, client: str, chunked: bool, recipe: Recipe, place: str
) -> None:
    """C3, I2: whichever byte is wrong, with and without Content-Length."""
    image = registry.publish(recipe, "library/corrupt")
    layer = image.largest_layer
    fault = Fault(
        on="bytes",
        matching=layer.removeprefix("sha256:"),
        corrupt=place,  # type: ignore[arg-type]  # parametrized
        chunked=chunked,
        times=None,
    )
    registry.fault(fault)
    pull = steered.pull(client, "docker.io/library/corrupt:1")

    assert not pull.ok
    assert layer not in stored(steered)
    sent = [request for request in registry.requests_for("bytes") if layer[7:] in request.path]
    assert sent, "the registry was asked, so the bytes came through the agent"

    registry.heal()
    healed = steered.pull(client, "docker.io/library/corrupt:1")
    assert healed.contents == image.contents
    assert layer in stored(steered)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_verifies_nothing_never_gets_a_whole_corrupted_body(
    steered: Node, registry: Registry, chunked: bool
) -> None:
    """C3, I2: curl checks no digest; the connection is cut before its body is whole."""
    image = registry.publish(SINGLE_LAYER, "library/corrupt")
    steered.pull("skopeo", REFERENCE)  # so that nothing of the first contact hides the fault
    registry.fault(Fault(on="bytes", corrupt="last", chunked=chunked, times=None))
    url = f"https://registry-1.docker.io/v2/library/corrupt/blobs/{image.largest_layer}"
    exit_code, status, cache = curl(steered, url)

    assert (status, cache) == (200, "miss")
    assert exit_code in (18, 56), "curl calls it partial, or the connection reset"
    assert image.largest_layer not in stored(steered)


@pytest.mark.parametrize("client", ["skopeo", "podman"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="bytes", cut_at=200_000, times=2),
        Fault(on="bytes", cut_at=200_000, cut="reset", times=2),
        Fault(on="bytes", cut_at=-1),
        Fault(on="blob", status=500),
        Fault(on="bytes", status=503),
        Fault(on="bytes", hang_up=True),
        Fault(on="manifest", status=503),
    ],
    ids=["cut", "reset", "last byte", "blob 500", "bytes 503", "hung up", "manifest 503"],
)
def test_a_fault_that_would_end_the_pull_is_mended(
    steered: Node, registry: Registry, fault: Fault, client: str
) -> None:
    """C12: skopeo and podman fail on each of these without the agent; through it they notice nothing."""
    image = registry.publish(SINGLE_LAYER, "library/mended")
    registry.fault(fault)
    pull = steered.pull(client, "docker.io/library/mended:1")

    assert pull.contents == image.contents, pull.stderr


def test_a_length_that_is_always_too_long_does_not_matter(steered: Node, registry: Registry) -> None:
    """C3: Content-Length is the registry's claim; the manifest, which is verified, says how long it is."""
    image = registry.publish(SINGLE_LAYER, "library/long")
    registry.fault(Fault(on="bytes", content_length_off_by=7, times=None))
    pull = steered.pull("skopeo", "docker.io/library/long:1")

    assert pull.contents == image.contents, pull.stderr
    assert image.largest_layer in stored(steered)


@pytest.mark.parametrize("off_by", [-100_000, -7])
def test_a_wrong_length_never_makes_another_blob_whole(
    steered: Node, registry: Registry, off_by: int
) -> None:
    """C3, I2: Content-Length is the registry's claim, the digest decides."""
    image = registry.publish(SINGLE_LAYER, "library/short")
    registry.fault(Fault(on="bytes", content_length_off_by=off_by, times=None))
    pull = steered.pull("skopeo", "docker.io/library/short:1")

    assert not pull.ok
    assert image.largest_layer not in stored(steered)


@pytest.mark.parametrize(
    "status", [401, 404, 429, 503, *(pytest.param(each, marks=pytest.mark.slow) for each in (403, 500))]
)
def test_what_a_registry_keeps_answering_reaches_the_client(
    steered: Node, registry: Registry, status: int
) -> None:
    """C16: an answer of the registry is passed on when nothing of ours can serve."""
    registry.fault(Fault(on="manifest", status=status, times=None))
    url = "https://registry-1.docker.io/v2/library/small/manifests/1"

    exit_code, answered, _ = curl(steered, url)
    assert (exit_code, answered) == (0, status)


@pytest.mark.parametrize("status", [429, 503, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_a_failing_registry_leaves_a_cached_image_in_reach(
    steered: Node, registry: Registry, lab: Lab, client: str, status: int
) -> None:
    """C7: everything the registry answers is an error, and the pull succeeds from the cache."""
    steered.pull("skopeo", REFERENCE)
    registry.fault(Fault(on="any", status=status, times=None))
    pull = steered.pull(client, REFERENCE)

    assert pull.contents == lab.images[REFERENCE].contents, pull.stderr


@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_a_full_disk_does_not_fail_a_pull(node: Node, registry: Registry, client: str) -> None:
    """I1: the layer does not fit; it goes through uncached, whole, and what does fit is kept."""
    node.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "/var/lib/tidegate"]).or_raise()
    node.install_trust()
    agent = node.start_agent().wait_steering()
    image = registry.publish(
        Recipe(name="large", layers=(4_000_000, 1_000), with_busybox=False), "library/full"
    )
    pull = node.pull(client, "docker.io/library/full:1")

    assert pull.contents == image.contents, pull.stderr
    assert image.largest_layer not in stored(node)
    assert agent.status()["steering"]["active"]


def test_a_corrupted_layer_never_completes_on_a_full_disk_either(node: Node, registry: Registry) -> None:
    """I2: a reader that goes on alone verifies too."""
    node.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "/var/lib/tidegate"]).or_raise()
    node.install_trust()
    node.start_agent().wait_steering()
    image = registry.publish(Recipe(name="large", layers=(4_000_000,), with_busybox=False), "library/full")
    registry.fault(Fault(on="bytes", corrupt="first", times=None))
    url = f"https://registry-1.docker.io/v2/library/full/blobs/{image.largest_layer}"
    exit_code, status, _ = curl(node, url)

    assert status == 200
    assert exit_code in (18, 56)


def test_a_state_directory_that_vanishes_does_not_fail_a_pull(
    steered: Node, registry: Registry, lab: Lab
) -> None:
    """I1: somebody cleaned up under the running agent."""
    steered.run(["rm", "-rf", "/var/lib/tidegate/blobs", "/var/lib/tidegate/partial"]).or_raise()
    steered.run(["rm", "-f", "/var/lib/tidegate/index.sqlite"]).or_raise()
    for client in ("skopeo", "podman"):
        assert steered.pull(client, REFERENCE).contents == lab.images[REFERENCE].contents
