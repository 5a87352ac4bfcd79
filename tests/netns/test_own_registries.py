"""Registries of one's own: on other ports, over plain HTTP, with a certificate by a CA that no node trusts.

The registries are Debian's docker-registry itself, with no proxy of the lab's in front of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab import SINGLE, Agent, Image, Lab, Node, OwnRegistry, Pull, Recipe, allow_plain_http, ask
from lab import containerd as lab_containerd

NAME = "registry.local.test"
CLIENTS = ("skopeo", "podman", "ctr", "dockerd")
CA = "/etc/tidegate/own-ca.pem"


def table(scheme: str, port: int, name: str = "own") -> str:
    """What an administrator writes for such a registry."""
    how = "plain_http = true" if scheme == "http" else f'ca = "{CA}"'
    return f'[[registry]]\nname = "{name}"\nhosts = ["{NAME}:{port}"]\n{how}\n'


@pytest.fixture
def own(lab: Lab) -> OwnRegistry:
    return lab.add_own_registry(NAME)


def steering(node: Node, own: OwnRegistry, config: str) -> Agent:
    node.write(CA, own.authority.anchor)
    agent = node.start_agent(config)
    node.install_trust()
    return agent.wait_steering()


def pulls(node: Node, client: str, scheme: str) -> Callable[[str, Image], bool]:
    """How this client pulls from such a registry, and whether it got just the image."""

    def with_ctr(reference: str, image: Image) -> bool:
        lab_containerd.empty(node)
        pulled = node.run(["ctr", "images", "pull", "--plain-http", reference], timeout_s=60)
        assert pulled.ok, pulled.stderr
        return lab_containerd.stored(node, lab_containerd.CTR_NAMESPACE, reference) == image.contents

    def with_any(reference: str, image: Image) -> bool:
        pull: Pull = node.pull(client, reference)
        assert pull.ok, pull.stderr
        return pull.brought(image)

    return with_ctr if (client, scheme) == ("ctr", "http") else with_any


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_every_client_pulls_from_a_registry_on_port_5000(node: Node, own: OwnRegistry, scheme: str) -> None:
    """C24, N3, C2: cold through the agent, then from its cache alone, with the registry ended.

    No client knows the registry's CA: what it meets is the agent.
    """
    own.serve(5000, scheme)
    if scheme == "http":
        allow_plain_http(node, f"{NAME}:5000")
    agent = steering(node, own, table(scheme, 5000))
    images = {}
    for number, client in enumerate(CLIENTS):
        node.start_daemon_of(client)
        recipe = Recipe(name=f"for-{client}", layers=(50_000 + number, 300), with_busybox=False)
        images[client] = own.publish(recipe, f"team/{client}", port=5000)

    for client in CLIENTS:
        own.forget(5000)
        assert pulls(node, client, scheme)(f"{NAME}:5000/team/{client}:1", images[client])
        fetched = [each.path for each in own.asked(5000) if "/blobs/" in each.path]
        assert len(fetched) == len(set(fetched)) == 1 + len(images[client].contents.layers)

    assert agent.metrics()['tidegate_connections_total{outcome="intercepted",reason="steered"}'] > 0
    own.stop(5000)
    for client in CLIENTS:
        assert pulls(node, client, scheme)(f"{NAME}:5000/team/{client}:1", images[client])


def test_one_name_may_be_three_registries(node: Node, own: OwnRegistry) -> None:
    """C24: on 443, 5000 and 5001 the same tag is another image; each is cached as its own."""
    ports = {443: "https", 5000: "https", 5001: "http"}
    images = {}
    for port, scheme in ports.items():
        own.serve(port, scheme)
        recipe = Recipe(name=f"on-{port}", layers=(60_000 + port,), with_busybox=False)
        images[port] = own.publish(recipe, "team/tool", port=port)
    allow_plain_http(node, f"{NAME}:5001")
    steering(node, own, "".join(table(scheme, port, f"own-{port}") for port, scheme in ports.items()))

    for dark in (False, True):
        for port in ports:
            authority = NAME if port == 443 else f"{NAME}:{port}"
            assert node.pull("skopeo", f"{authority}/team/tool:1").contents == images[port].contents
            if not dark:
                own.stop(port)


def test_what_is_not_for_the_plain_registry_meets_the_origin(node: Node, own: OwnRegistry) -> None:
    """C24, N6: another host on its address and port, and TLS where it speaks none, as without the agent."""
    own.serve(5000, "http")
    elsewhere = f"http://{own.interfaces[0].ip}:5000/v2/"
    direct = ask(node, elsewhere)
    tls = node.run(["curl", "-sS", f"https://{NAME}:5000/v2/"])
    agent = steering(node, own, table("http", 5000))

    assert ask(node, f"http://{NAME}:5000/v2/").cache
    through = ask(node, elsewhere)
    assert (through.status, through.body, through.cache) == (direct.status, direct.body, "")
    assert node.run(["curl", "-sS", f"https://{NAME}:5000/v2/"]).stderr == tls.stderr != ""
    spliced = 'tidegate_connections_total{outcome="spliced",reason="other_scheme"}'
    assert agent.metrics()[spliced] == 2


def test_a_ca_counts_for_its_registry_alone(lab: Lab, node: Node, own: OwnRegistry) -> None:
    """C24, I7: the same certificate is refused for a registry that does not name the CA."""
    own.serve(5000)
    own.serve(5001)
    for port in (5000, 5001):
        own.publish(SINGLE, "team/tool", port=port)
    without = f'[[registry]]\nname = "without"\nhosts = ["{NAME}:5001"]\n'
    steering(node, own, table("https", 5000) + without)

    assert node.pull("skopeo", f"{NAME}:5000/team/tool:1").ok
    refused = node.pull("skopeo", f"{NAME}:5001/team/tool:1")

    assert not refused.ok
    assert not own.asked(5001)


@pytest.mark.parametrize("name", ["eu.gcr.io", pytest.param("europe-docker.pkg.dev", marks=pytest.mark.slow)])
def test_a_wildcard_stands_for_one_label(lab: Lab, node: Node, name: str) -> None:
    """N2, N8, C1: a name below it is learned when it is asked for, and the certificate covers it.

    A deeper one is nobody's: its clients meet the registry itself, as if there were no agent.
    """
    deep = f"a.{name}"
    own = lab.add_own_registry(name, deep)
    own.serve(443)
    image = own.publish(SINGLE, "project/tool", port=443)
    for host in (name, deep):  # the CA that a client without an agent needs
        node.write(f"/etc/containers/certs.d/{host}/ca.crt", own.authority.anchor)
    agent = steering(node, own, f'[[registry]]\nname = "{name.partition(".")[2]}"\nca = "{CA}"\n')
    before = agent.status()["steering"]["addresses"]

    assert node.pull("skopeo", f"{name}/project/tool:1").contents == image.contents
    assert agent.status()["steering"]["addresses"] == before + 1
    assert agent.metrics()['registry_proxy_misses_total{type="blob"}'] == 1 + len(image.contents.layers)

    for _ in range(2):
        own.forget(443)
        assert node.pull("podman", f"{deep}/project/tool:1").contents == image.contents
        assert len([each for each in own.asked(443) if "/blobs/" in each.path]) >= 1
    own.stop(443)
    assert node.pull("podman", f"{name}/project/tool:1").contents == image.contents
    assert not node.pull("skopeo", f"{deep}/project/tool:1").ok


@pytest.mark.parametrize("scheme", ["https", pytest.param("http", marks=pytest.mark.slow)])
def test_a_central_tier_fetches_from_registries_of_ones_own(
    lab: Lab, node: Node, own: OwnRegistry, scheme: str
) -> None:
    """C24, T3: it is configured alike, and the port travels in `ns`; the node asks only who may read."""
    own.serve(5000, scheme)
    image = own.publish(SINGLE, "team/single", port=5000)
    allow_plain_http(node, *([f"{NAME}:5000"] if scheme == "http" else []))
    central = lab.add_central()
    central.write(CA, own.authority.anchor)
    central.start(table(scheme, 5000))
    node.write("/etc/tidegate/central.pem", central.ca)
    tier = f'[[upstream]]\nkind = "central"\nurl = "{central.mirror}"\nca = "/etc/tidegate/central.pem"\n'
    steering(node, own, table(scheme, 5000) + tier)
    own.forget(5000)

    pull = node.pull("skopeo", f"{NAME}:5000/team/single:1")

    assert pull.contents == image.contents, pull.stderr
    blobs = {each.peer for each in own.asked(5000) if "/blobs/" in each.path and each.method == "GET"}
    assert {peer.rpartition(":")[0] or peer for peer in blobs} <= {str(central.interfaces[0].ip)}
    assert blobs


def test_a_ca_that_cannot_be_read_keeps_the_agent_from_starting(node: Node) -> None:
    """C24, DESIGN 9: with what to look at; nothing is steered half."""
    agent = node.start_agent(table("https", 5000))

    assert agent.supervisor.wait(20) == 1
    assert f"ls -l {CA}" in agent.log
