"""A node of a fleet with a central tier: cold, warm, dark, killed, lost. The same on namespaces and machines.

`script/test` plays them on namespaces, `script/vm-test` on machines that cloud-init has set up.
"""

from __future__ import annotations

from collections.abc import Callable

from lab import Agent, Host, Image, Lab, Node, Pull, Registry

SMALL = "docker.io/library/small:1"
SINGLE = "docker.io/library/single:1"
REDIRECTS = "nft list tables | grep -qx 'table inet tidegate'"  # nft's and eBPF's alike
KILL = f"kill -9 $1; for _ in $(seq 50); do {REDIRECTS} || exit 0; sleep 0.01; done; exit 1"


def address_of(host: Host) -> str:
    return str(host.interfaces[0].ip)


def pulled(pull: Pull, image: Image) -> bool:
    """The pull ended well with exactly the image's bytes."""
    assert pull.ok, pull.stderr
    assert pull.contents == image.contents
    return True


def test_a_cold_pull_comes_through_agent_and_tier(
    lab: Lab, node: Node, registry: Registry, central: Host, agent: Agent
) -> None:
    """N1, N3, N16, C1, T3: an unconfigured client's first pull is fetched once, by the tier, and kept."""
    image = lab.images[SMALL]

    assert pulled(node.pull("skopeo", SMALL), image)

    blobs = [image.contents.config, *image.contents.layers]
    fetched = registry.requests_for("bytes")
    assert len(fetched) == len(blobs)
    assert {request.peer[0] for request in fetched} == {address_of(central)}
    cache = agent.status()["cache"]
    assert cache["misses"] == len(blobs) + 2
    assert cache["blobs"] == len(blobs) + 2  # and the index, and the manifest


def test_a_warm_pull_costs_the_registry_no_bytes(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C2, C6, C9: another client gets what the first one pulled; the registry is asked what the tag is."""
    image = lab.images[SMALL]
    assert pulled(node.pull("skopeo", SMALL), image)
    registry.forget()

    assert pulled(node.pull("podman", SMALL), image)

    assert {request.method for request in registry.requests_for("manifest")} == {"HEAD"}
    assert registry.requests_for("blob", "bytes") == []


def test_a_dark_registry_costs_no_pull(lab: Lab, node: Node, registry: Registry, agent: Agent) -> None:
    """C7: what was pulled once is pulled again while no packet reaches the registry."""
    image = lab.images[SMALL]
    assert pulled(node.pull("skopeo", SMALL), image)
    registry.goes_dark("silent")
    registry.forget()

    assert pulled(node.pull("podman", SMALL), image)

    assert registry.connections == []


def test_a_killed_agent_steers_nothing_and_comes_back_by_itself(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """N4, I1: SIGKILL takes the rules away; the next pull goes direct; then the cache is back, unasked."""
    image = lab.images[SMALL]
    assert pulled(node.pull("skopeo", SMALL), image)
    assert node.run(["sh", "-c", REDIRECTS]).ok
    registry.forget()

    steers_nothing = node.run(["sh", "-c", KILL, "sh", str(agent.pid)]).ok
    assert pulled(node.pull("skopeo", SMALL), image)

    assert steers_nothing
    # Through the agent a cached tag costs one HEAD.
    assert "GET" in {request.method for request in registry.requests_for("manifest")}

    agent.wait_steering()
    registry.forget()
    assert pulled(node.pull("podman", SMALL), image)
    assert registry.requests_for("blob", "bytes") == []


def test_a_lost_central_tier_costs_no_pull(
    lab: Lab,
    node: Node,
    registry: Registry,
    central: Host,
    agent: Agent,
    power_off: Callable[[Host], None],
) -> None:
    """T6, N3: the tier's machine loses its power; what is cold comes from the registry to the node itself."""
    assert pulled(node.pull("skopeo", SMALL), lab.images[SMALL])
    power_off(central)
    registry.forget()

    cold, warm = node.pull("podman", SINGLE), node.pull("podman", SMALL)

    assert pulled(cold, lab.images[SINGLE])
    assert pulled(warm, lab.images[SMALL])
    assert {request.peer[0] for request in registry.requests_for("bytes")} == {address_of(node)}
