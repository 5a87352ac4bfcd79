"""Sinkhole mode: names that are told an address of this host, for nodes whose resolvers lead nowhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lab import Agent, Central, Lab, Node, Registry, Resolver, ask, until
from lab.network import Address

SMALL = "docker.io/library/small:1"
TOOL = "quay.io/team/tool:1"
IMAGES = (SMALL, TOOL, "docker.io/library/single:1")
SINKHOLE = "127.74.0.1"
EVERYTHING = '[dns]\nmode = "sinkhole"\n'
CLIENTS = ("skopeo", "podman", "ctr")

HELLO = """
import socket, ssl, sys
context = ssl._create_unverified_context()
sock = socket.create_connection(("127.74.0.1", 443), timeout=10)
try:
    print(context.wrap_socket(sock, server_hostname=sys.argv[1] or None).version())
except OSError as error:
    print(type(error).__name__)
"""


def steering(node: Node, config: str) -> Agent:
    agent = node.start_agent(config)
    node.install_trust()
    return agent.wait_steering()


def through(central: Central, node: Node) -> str:
    node.write("/etc/tidegate/central.pem", central.ca)
    return f'[[upstream]]\nkind = "central"\nurl = "{central.mirror}"\nca = "/etc/tidegate/central.pem"\n'


def told(node: Node, name: str, kind: str = "A") -> list[str]:
    return node.dig("+short", kind, name).or_raise().stdout.split()


def lan_resolver(lab: Lab, names: dict[str, Address]) -> Address:
    """A resolver that knows these names of the LAN and denies all others, for want of an internet."""
    host = lab.add_node("lan-dns")
    records = [f"--host-record={name},{address}" for name, address in names.items()]
    options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--local=/#/", "--user=root", *records]
    host.spawn(["dnsmasq", "--conf-file=/dev/null", *options], log="dnsmasq")
    until(lambda: 53 in host.listening(), "the LAN's resolver listens")
    return host.interfaces[0].ip


# Without a way out


def test_a_node_without_route_and_upstream_dns_pulls_through_a_central_tier(lab: Lab, node: Node) -> None:
    """N11, T3: cold with each client, then warm with the tier gone. Killed, it leaves them as they were."""
    central = lab.add_central().start()
    node.use_resolvers([lan_resolver(lab, {central.domain_name: central.interfaces[0].ip})])
    lab.network.remove_default_route(node)
    node.start_containerd()
    for client in CLIENTS:
        assert not node.pull(client, SMALL).ok
    agent = steering(node, EVERYTHING + through(central, node))
    node.containerd.restart()  # type: ignore[union-attr]  # started above

    for client, image in zip(CLIENTS, IMAGES, strict=True):
        pull = node.pull(client, image)
        assert pull.contents == lab.images[image].contents, pull.stderr
    central.kill()
    for client, image in zip(CLIENTS, reversed(IMAGES), strict=True):
        pull = node.pull(client, image)
        assert pull.contents == lab.images[image].contents, pull.stderr
    assert agent.status()["dns"]["sinkholes"]

    agent.supervisor.kill()
    agent.supervisor.wait()
    assert not node.pull("skopeo", SMALL).ok


@pytest.mark.parametrize("resolvers", ["none", pytest.param("dead", marks=pytest.mark.slow)])
def test_a_node_without_any_resolver_pulls_through_a_connect_tier(
    lab: Lab, node: Node, resolvers: str
) -> None:
    """N11, T2: no `nameserver` at all, or one that is dead; the tier is known by its address.

    Through such a tier clients ask the token service themselves, so that is a host of the registry, too.
    """
    tier = lab.add_tier().start()
    node.use_resolvers([] if resolvers == "none" else [lab.add_node("dead").interfaces[0].ip])
    lab.network.remove_default_route(node)
    hosts = ["registry-1.docker.io", "index.docker.io", "auth.docker.io"]
    table = f'[[upstream]]\nkind = "connect"\nurl = "{tier.url}"\nfallback = "deny"\n'
    steering(node, f'{EVERYTHING}[[registry]]\nname = "docker.io"\nhosts = {hosts}\n{table}')

    for client in ("skopeo", "podman"):
        pull = node.pull(client, SMALL)
        assert pull.contents == lab.images[SMALL].contents, pull.stderr


def test_a_host_without_a_default_route_needs_the_sinkhole(lab: Lab, node: Node, registry: Registry) -> None:
    """N11: its resolver knows the registry, and the kernel refuses to connect before any rule of ours."""
    central = lab.add_central().start()
    lab.network.remove_default_route(node)
    agent = steering(node, through(central, node))
    assert not node.pull("skopeo", SMALL).ok
    agent.stop()

    steering(node, EVERYTHING + through(central, node))

    assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents


# With one


@pytest.fixture
def learning(node: Node, registry: Registry) -> Iterator[Agent]:
    """docker.io's names are told the sinkhole, all others are learned."""
    agent = steering(node, '[[registry]]\nname = "docker.io"\nmode = "sinkhole"\n')
    registry.forget()
    yield agent


def test_a_registry_of_its_own_mode_is_told_from_the_others(
    lab: Lab, node: Node, registry: Registry, resolver: Resolver, learning: Agent
) -> None:
    """N11, N12: A for a second and no AAAA there, real addresses elsewhere; both are cached."""
    resolver.answer(dual_stack=True)
    answer = node.dig("+noall", "+answer", "registry-1.docker.io").stdout.split()
    assert answer == ["registry-1.docker.io.", "1", "IN", "A", SINKHOLE]
    assert told(node, "registry-1.docker.io", "AAAA") == []
    assert node.dig("registry-1.docker.io", "AAAA").stdout.count("status: NOERROR") == 1
    assert told(node, "registry-1.docker.io.") == told(node, "REGISTRY-1.docker.io") == [SINKHOLE]
    assert node.dig("+tcp", "+short", "index.docker.io").stdout.split() == [SINKHOLE]
    assert SINKHOLE not in told(node, "quay.io") != []

    for image in (SMALL, TOOL):
        assert node.pull("skopeo", image).contents == lab.images[image].contents
    lab.registry.goes_dark()
    lab.quay.goes_dark()
    resolver.goes_dark()
    for image in (SMALL, TOOL):
        assert node.pull("podman", image).contents == lab.images[image].contents
    assert learning.status()["dns"]["sinkholes"] == ["registry-1.docker.io", "index.docker.io"]


@pytest.mark.parametrize("end", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow), "pause"])
def test_when_the_agent_is_gone_the_name_is_the_registrys_again(
    lab: Lab, node: Node, registry: Registry, learning: Agent, end: str
) -> None:
    """N4, N11, I1: the next look-up asks the resolver, and what was told is forgotten within a second."""
    assert told(node, "registry-1.docker.io") == [SINKHOLE]

    if end == "pause":
        node.tidegate("pause").or_raise()
    elif end == "SIGTERM":
        learning.stop()
    else:
        with node.process(learning.pid) as process:
            learning.supervisor.kill(signal.SIGSTOP)  # or it would start another one
            process.kill(signal.SIGKILL)
            until(lambda: not process.running, "the agent is dead")

    pull = node.pull("skopeo", SMALL)
    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert registry.requests_for("bytes")
    assert told(node, "registry-1.docker.io") == [str(registry.addresses["registry-1.docker.io"][0])]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ebpf", "nft-lease", "iptables"])
def test_the_sinkhole_is_steered_by_every_back_end(
    lab: Lab, node: Node, registry: Registry, backend: str
) -> None:
    """N11, N14, N15: the one loopback address that they let pass is an endpoint as any other to them."""
    agent = steering(node, f'{EVERYTHING}[steering]\nbackend = "{backend}"\n')
    assert agent.status()["steering"]["backend"] == backend
    assert told(node, "registry-1.docker.io") == [SINKHOLE]

    assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents
    registry.goes_dark()
    pull = node.pull("podman", SMALL)
    assert pull.contents == lab.images[SMALL].contents, pull.stderr


def test_whoever_else_comes_to_the_sinkhole_is_refused(node: Node, learning: Agent) -> None:
    """N11, I5: it leads nowhere, not even for a name that would resolve."""
    assert node.python(HELLO, "registry-1.docker.io").stdout == "TLSv1.3\n"

    for sni in ("www.example.org", "quay.io.example.org", ""):
        assert node.python(HELLO, sni).stdout == "ConnectionResetError\n"
    refused = 'tidegate_connections_total{outcome="refused",reason="unreachable"}'
    assert learning.metrics()[refused] == 3


def test_a_runtime_that_does_not_trust_us_yet_reaches_the_registry_all_the_same(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """N9, N11: the agent looks up where the name that it asks for really is."""
    node.start_containerd()
    agent = steering(node, EVERYTHING)
    registry.forget()

    for _ in range(2):
        assert node.pull("cri", SMALL).contents == lab.images[SMALL].contents

    assert agent.metrics()['tidegate_connections_total{outcome="spliced",reason="not_restarted"}'] > 0
    digests = [request.path for request in registry.requests_for("bytes")]
    assert len(digests) == 2 * len(set(digests))


def test_registries_on_other_ports_and_without_tls_have_sinkholes_too(lab: Lab, node: Node) -> None:
    """N11, C24: the port is the client's, and the Host field says whom it means."""
    own = lab.add_own_registry()
    own.serve(5000, "http")
    table = f'[[registry]]\nname = "own"\nhosts = ["{own.domain_name}:5000"]\nplain_http = true\n'
    steering(node, EVERYTHING + table)

    answer = ask(node, f"http://{own.domain_name}:5000/v2/")

    assert told(node, own.domain_name) == [SINKHOLE]
    assert (answer.status, answer.cache) == (200, "bypass")
    assert node.run(["curl", "-s", f"http://{SINKHOLE}:5000/v2/"]).exit_code == 56  # reset
