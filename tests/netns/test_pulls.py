"""Pulls through the agent, with real clients and a real registry: cold, warm, dark, private, moved, failing.

The clients are unconfigured but for the trust store. What the registry was asked is told by its own log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

from lab import SINGLE, SMALL, Agent, Fault, Image, Lab, Node, Pull, Redirects, Registry, Resolver, ask, until

SMALL_1 = "docker.io/library/small:1"
PRIVATE_1 = "docker.io/alice/private:1"
ORIGIN = "https://registry-1.docker.io"
PAIR = ("skopeo", "podman")
DARKNESS = ("registry", "resolver", "both")
ACCEPT_INDEX = ("--header", "Accept: application/vnd.oci.image.index.v1+json")
AGE_THE_INDEX = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as index:
    assert index.execute("UPDATE public SET checked_at = checked_at - 7200").rowcount
"""
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
    assert node.agents[-1].supervisor.running, node.agents[-1].log[-4000:]


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
    manifest = f"{ORIGIN}/v2/library/small/manifests/1"
    until(lambda: ask(node, manifest, *ACCEPT_INDEX).cache == "revalidated", "the tag is asked for again")


def test_an_offline_pull_long_after_the_last_one_is_no_slower(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C7, C15: that a repository is public was asked two hours ago, and cannot be asked again now."""
    image = lab.images[SMALL_1]
    assert pulled(node.pull("skopeo", SMALL_1), image)
    assert agent.stop() == 0
    node.python(AGE_THE_INDEX, "/var/lib/tidegate/index.sqlite").or_raise()
    node.start_agent().wait_steering()
    registry.goes_dark("silent")

    pull = node.pull("podman", SMALL_1)

    assert pulled(pull, image)
    assert pull.duration_s < OFFLINE_PULL_S


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


def test_a_client_of_few_words_does_not_cost_the_others_their_tag(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C5, C7: a 404 for want of an accepted media type is no reason to forget what the tag is."""
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])

    assert ask(node, f"{ORIGIN}/v2/library/small/manifests/1", "--header", "Accept: */*").status >= 400

    registry.goes_dark()
    assert pulled(node.pull("podman", SMALL_1), lab.images[SMALL_1])


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


# Private repositories


def stored(node: Node) -> set[str]:
    """The digests of everything in the agent's store."""
    files = node.path("/var/lib/tidegate/blobs").rglob("*")
    return {f"sha256:{path.name}" for path in files if path.is_file()}


def test_a_private_image_is_not_served_in_the_dark(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C7, C15, I6: the ping is answered without a challenge then, but only public content is served."""
    alice = registry.users["alice"]
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), lab.images[PRIVATE_1])
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    registry.goes_dark()
    assert ask(node, f"{ORIGIN}/v2/").status == 200

    assert not node.pull("podman", PRIVATE_1).ok
    assert not node.pull("skopeo", PRIVATE_1, login=alice).ok
    for path in blobs_and_manifest(lab.images[PRIVATE_1]):
        assert ask(node, f"{ORIGIN}/v2/alice/private/{path}").status >= 400
    assert pulled(node.pull("podman", SMALL_1), lab.images[SMALL_1])


def test_a_stored_layer_does_not_open_the_private_repository_that_shares_it(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """I6: a public image holds the same layer; under the private name it is refused all the same."""
    shared = set(lab.images[SMALL_1].contents.layers) & set(lab.images[PRIVATE_1].contents.layers)
    assert shared
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    (digest,) = shared & stored(node)

    assert ask(node, f"{ORIGIN}/v2/library/small/blobs/{digest}").cache == "hit"
    refused = ask(node, f"{ORIGIN}/v2/alice/private/blobs/{digest}")

    assert refused.status == 401
    assert refused.cache == "bypass"


def test_a_private_digest_is_not_had_through_a_public_repository(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """I6: what alice pulled a moment ago is unknown under a name that anyone may read."""
    assert pulled(node.pull("skopeo", PRIVATE_1, login=registry.users["alice"]), lab.images[PRIVATE_1])
    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    public = set(lab.images[SMALL_1].sizes)

    for path in blobs_and_manifest(lab.images[PRIVATE_1]):
        if path.rpartition("/")[2] not in public:
            assert ask(node, f"{ORIGIN}/v2/library/small/{path}").status in (401, 404)


def blobs_and_manifest(image: Image) -> list[str]:
    contents = image.contents
    blobs = [f"blobs/{digest}" for digest in (contents.config, *contents.layers)]
    return [f"manifests/{contents.manifest}", *blobs]


# Connections


def test_the_agents_own_connections_are_never_steered(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """I5: each connection of a client arrives once, and none of the agent's own arrives at all."""
    before = agent.metrics()
    blob = f"{ORIGIN}/v2/library/small/blobs/{lab.images[SMALL_1].contents.config}"
    uncached = f"{ORIGIN}/v2/library/small/tags/list"
    asked = [blob, uncached] * 10

    answers = [ask(node, url) for url in asked]

    assert {answer.cache for answer in answers[::2]} == {"miss", "hit"}
    assert {answer.cache for answer in answers[1::2]} == {"miss"}  # a list: asked for each time
    after = agent.metrics()
    arrived = {name: after[name] - before.get(name, 0) for name in after if "tidegate_connections" in name}
    by_clients = 'tidegate_connections_total{outcome="intercepted",reason="steered"}'
    by_the_probe = 'tidegate_connections_total{outcome="intercepted",reason="probe"}'
    assert arrived.pop(by_clients) == len(asked)
    arrived.pop(by_the_probe)
    assert not any(arrived.values()), arrived
    # One kept-alive connection each to registry, token service and blob host.
    assert len(registry.connections) == len({c.local for c in registry.connections}) == 3
    assert len(registry.requests_for("other")) == len(asked) / 2


def test_many_clients_of_one_cold_image_cost_one_fetch(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """C11, I5: six clients at once; the registry sends each blob once, and sees few connections."""
    image = lab.images[SMALL_1]

    pulls = [node.start_pull(client, SMALL_1) for client in ("skopeo", "skopeo-oci", "podman") * 2]
    for pull in pulls:
        assert pulled(pull.wait(), image)

    asked = [request.path for request in registry.requests_for("bytes")]
    assert len(asked) == len(set(asked)) == len(image.contents.layers) + 1
    token_service = {str(address) for address in registry.addresses["auth.docker.io"]}
    own = [c for c in registry.connections if c.local[0] not in token_service]
    assert len(own) <= 2 * len(pulls)


# Redirects


@pytest.mark.parametrize(
    "redirects",
    [
        Redirects(status=301),
        Redirects(status=302, hops=3),
        Redirects(status=303, relative=True),
        Redirects(status=307, hops=5),
        Redirects(status=308, hops=2, relative=True),
        Redirects(status=307, hops=8),
    ],
    ids=lambda redirects: f"{redirects.status} x{redirects.hops}{' relative' * redirects.relative}",
)
def test_blobs_behind_redirects_are_fetched_and_kept(
    lab: Lab, node: Node, registry: Registry, agent: Agent, redirects: Redirects
) -> None:
    """C8: every kind of redirect leads to the bytes, more hops than the agent follows included.

    The token stays with the registry, the signature arrives to the letter.
    """
    reference = "docker.io/library/single:1"
    registry.redirect_blobs(redirects)

    assert pulled(node.pull("skopeo", reference), lab.images[reference])

    if redirects.hops <= 5:  # else the client went that way itself
        if not redirects.relative:
            assert {request.authorization for request in registry.requests_for("bytes")} == {""}
        assert set(lab.images[reference].contents.layers) < stored(node)
