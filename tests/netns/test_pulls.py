"""Pulls through the agent, with real clients and a real registry: cold, warm, dark, private, moved, failing.

The clients are unconfigured but for the trust store. What the registry was asked is told by its own log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

from lab import SINGLE, SMALL, Agent, Fault, Image, Lab, Node, Pull, Registry, Resolver, ask, until

SMALL_1 = "docker.io/library/small:1"
PRIVATE_1 = "docker.io/alice/private:1"
ORIGIN = "https://registry-1.docker.io"
PAIR = ("skopeo", "podman")
DARKNESS = ("registry", "resolver", "both")
OFFLINE_PULL_S = 6.0
"""Far below any client's own time-outs; an upstream is waited for at most 2 s, once."""


@pytest.fixture
def agent(node: Node, registry: Registry, resolver: Resolver) -> Iterator[Agent]:
    """An agent that steers on a node that trusts it.

    Names have a time to live of 0, which is dnsmasq's default: the clients' own look-ups then tell at once
    that a resolver has gone dark.
    """
    resolver.answer(ttl_s=0)
    node.install_trust()
    agent = node.start_agent().wait_steering()
    registry.forget()
    yield agent
    assert agent.supervisor.running, agent.log[-4000:]


def pulled(pull: Pull, image: Image) -> bool:
    """The pull ended well with exactly the image's bytes."""
    assert pull.ok, pull.stderr
    assert pull.contents == image.contents
    return True


def go_dark(what: str, registry: Registry, resolver: Resolver) -> None:
    if what in ("registry", "both"):
        registry.goes_dark()
    if what in ("resolver", "both"):
        resolver.goes_dark()


def agents_ports(node: Node, agent: Agent) -> set[int]:
    """The local ports of the TCP connections that the agent process holds to port 443 elsewhere."""
    sockets = node.run(["ss", "-Htnp", "state", "established", "dport", "=", ":443"]).or_raise().stdout
    return {
        int(found[1])
        for line in sockets.splitlines()
        if f"pid={agent.pid}," in line and (found := re.search(r"10\.77\.0\.2:(\d+)\s", line))
    }


# Cold, then warm


@pytest.mark.parametrize("client", PAIR)
def test_a_cold_pull_comes_through_the_agent(
    lab: Lab, node: Node, registry: Registry, agent: Agent, client: str
) -> None:
    """N1, N3, C1, I5: the only connections the registry and its blob host see are the agent's own."""
    image = lab.images[SMALL_1]

    assert pulled(node.pull(client, SMALL_1), image)

    hosts = ("registry-1.docker.io", "production.cloudflare.docker.com")
    theirs = {str(address) for host in hosts for address in registry.addresses[host]}
    peers = {connection.peer[1] for connection in registry.connections if connection.local[0] in theirs}
    assert peers
    assert peers <= agents_ports(node, agent)
    blobs = [image.contents.config, *image.contents.layers]
    fetched = sum(image.sizes[digest] for digest in blobs)
    assert sum(request.sent_bytes or 0 for request in registry.requests_for("bytes")) == fetched
    metrics = agent.metrics()
    assert metrics['registry_proxy_pulled_bytes_total{type="blob"}'] == fetched
    assert metrics['registry_proxy_misses_total{type="blob"}'] == len(blobs)
    assert metrics['registry_proxy_hits_total{type="blob"}'] == 0
    assert agent.status()["cache"]["blobs"] == len(blobs) + 2  # and the index, and the manifest


@pytest.mark.parametrize(("first", "second"), list(product(PAIR, PAIR)))
@pytest.mark.parametrize("dark", DARKNESS)
def test_what_one_client_pulled_another_gets_when_the_outside_is_dark(
    lab: Lab,
    node: Node,
    registry: Registry,
    resolver: Resolver,
    agent: Agent,
    dark: str,
    first: str,
    second: str,
) -> None:
    """C2, C4, C7, N3: the second pull of the tag is served from the cache, and nobody outside is asked."""
    image = lab.images[SMALL_1]
    assert pulled(node.pull(first, SMALL_1), image)
    go_dark(dark, registry, resolver)
    registry.forget()
    before = agent.metrics()

    assert pulled(node.pull(second, SMALL_1), image)

    assert registry.connections == []
    assert registry.requests == []
    after = agent.metrics()
    blobs = 'registry_proxy_hits_total{type="blob"}'
    assert after[blobs] - before[blobs] == len(image.contents.layers) + 1
    assert agent.status()["cache"]["stale"] >= 1


@pytest.mark.parametrize("dark", DARKNESS)
def test_an_offline_pull_is_not_a_slow_pull(
    lab: Lab, node: Node, registry: Registry, resolver: Resolver, agent: Agent, dark: str
) -> None:
    """C7: a registry or resolver whose packets vanish is waited for once, and then remembered."""
    image = lab.images[SMALL_1]
    assert pulled(node.pull("skopeo", SMALL_1), image)
    if dark in ("registry", "both"):
        lab.network.unplug(lab.internet)
    if dark in ("resolver", "both"):
        resolver.goes_dark("silent")
    try:
        registry.forget()

        first, second = node.pull("skopeo", SMALL_1), node.pull("podman", SMALL_1)

        assert pulled(first, image)
        assert pulled(second, image)
        assert first.duration_s < OFFLINE_PULL_S
        assert second.duration_s < OFFLINE_PULL_S / 2
        assert registry.connections == []
    finally:
        lab.network.plug_back(lab.internet)


def test_pulls_go_on_when_the_outside_comes_back(
    lab: Lab, node: Node, registry: Registry, resolver: Resolver, agent: Agent
) -> None:
    """C7: after the darkness the registry is asked again, and what is new is fetched."""
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    go_dark("both", registry, resolver)
    assert pulled(node.pull("podman", SMALL_1), lab.images[SMALL_1])
    resolver.comes_back()
    registry.comes_back()
    registry.forget()

    assert pulled(node.pull("podman", "docker.io/library/single:1"), lab.images["docker.io/library/single:1"])
    until(
        lambda: ask(node, f"{ORIGIN}/v2/library/small/manifests/1").cache == "revalidated",
        "it is asked again",
    )


# Tags


def test_a_tag_that_did_not_move_costs_one_head_and_no_pull(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C5, C6, C9: a second pull asks the registry for no manifest and no blob, only what the tag is."""
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    registry.forget()

    assert pulled(node.pull("podman", SMALL_1), lab.images[SMALL_1])

    assert [(request.method, request.status) for request in registry.requests_for("manifest")] == [
        ("HEAD", 200)
    ]
    assert registry.requests_for("blob", "bytes") == []


def test_a_moved_tag_is_seen_at_once(node: Node, registry: Registry, agent: Agent) -> None:
    """C6: the next pull after the move gets the new image, and then the new one when dark."""
    old = registry.publish(SMALL, "library/moved")
    assert pulled(node.pull("skopeo", "docker.io/library/moved:1"), old)
    new = registry.publish(SINGLE, "library/moved")

    assert pulled(node.pull("skopeo", "docker.io/library/moved:1"), new)
    registry.goes_dark()
    assert pulled(node.pull("podman", "docker.io/library/moved:1"), new)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on="manifest", status=429, times=None),
        Fault(on="manifest", status=500, times=None),
        Fault(on="any", status=503, times=None),
        Fault(on="any", hang_up=True, times=None),
    ],
    ids=["429", "500", "503 everywhere", "hangs up"],
)
def test_a_registry_that_fails_is_covered_for(
    lab: Lab, node: Node, registry: Registry, agent: Agent, fault: Fault
) -> None:
    """C7: too many requests and server errors do not reach a client that can be served."""
    assert pulled(node.pull("podman", SMALL_1), lab.images[SMALL_1])
    registry.fault(fault)
    registry.forget()

    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])

    assert registry.requests_for("blob", "bytes") == []
    assert agent.status()["cache"]["stale"] >= 1


@pytest.mark.parametrize(
    "path",
    [
        "/v2/library/absent/manifests/1",
        "/v2/library/small/manifests/absent",
        f"/v2/library/small/manifests/sha256:{'0' * 64}",
        f"/v2/library/small/blobs/sha256:{'0' * 64}",
        "/v2/alice/private/manifests/1",
        f"/v2/alice/private/blobs/sha256:{'0' * 64}",
        "/v2/",
        "/v2/library/small/tags/list",
        "/",
    ],
)
def test_a_refusal_is_passed_on_as_it_is(node: Node, registry: Registry, path: str) -> None:
    """C16, C22: 404 and 401 arrive with the registry's own status, challenge and body."""
    token = ask(
        node, "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/small:pull"
    )
    bearer = "" if "alice" in path or path == "/v2/" else "Authorization: Bearer " + _token_in(token.body)
    direct = ask(node, ORIGIN + path, "--header", bearer)
    node.install_trust()
    node.start_agent().wait_steering()

    through = ask(node, ORIGIN + path, "--header", bearer)

    assert direct.status in (200, 401, 404)
    assert direct.cache == ""
    assert through.cache != ""
    assert through.status == direct.status
    assert through.body == direct.body
    for name in ("www-authenticate", "content-type", "content-length", "docker-distribution-api-version"):
        assert through.headers.get(name) == direct.headers.get(name)


def _token_in(body: bytes) -> str:
    (token,) = re.findall(r'"token": ?"([^"]+)"', body.decode())
    return str(token)
