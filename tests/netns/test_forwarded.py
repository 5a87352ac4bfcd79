"""Containers behind the node's bridge, steered because the operator said so (N21)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab import Agent, Lab, Node, Registry, Resolver
from lab.container import ContainerBridge
from lab.footprint import Footprint
from lab.waiting import until

SMALL = "docker.io/library/small:1"
REGISTRY = "registry-1.docker.io"
FORWARDED = "[steering]\nforwarded = true\n"
INTERCEPTED = 'tidegate_connections_total{outcome="intercepted",reason="steered"}'
OWN_ADDRESS = 'tidegate_connections_total{outcome="refused",reason="own_address"}'


@pytest.fixture
def bridge(lab: Lab, node: Node) -> Iterator[ContainerBridge]:
    bridge = ContainerBridge(node)
    yield bridge
    bridge.close()


@pytest.fixture
def stranger(lab: Lab, bridge: ContainerBridge) -> Node:
    """A container whose image trusts the internet, and nothing of this node."""
    return bridge.add("stranger", resolvers=[lab.resolver.address], anchor=lab.authority.anchor)


@pytest.fixture
def friend(lab: Lab, node: Node, bridge: ContainerBridge) -> Node:
    """A container whose image holds this node's certificate, too."""
    node.install_trust()
    friend = bridge.add("friend", resolvers=[lab.resolver.address], anchor=lab.authority.anchor)
    bridge.trust(friend, node.path("/var/lib/tidegate/ca/ca.pem").read_bytes())
    return friend


def start(node: Node, config: str = FORWARDED) -> Agent:
    node.install_trust()
    agent = node.start_agent(config).wait_steering()
    if config == FORWARDED:
        until(
            lambda: [each["steered"] for each in agent.status()["forwarded"]] == [True],
            "the bridge is steered",
        )
    return agent


def test_a_container_that_trusts_the_node_is_served_from_its_cache(
    lab: Lab, node: Node, friend: Node, registry: Registry
) -> None:
    """N21: what the container pulls, the node has for itself, and the other way round."""
    agent = start(node)
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert agent.status()["cache"]["blobs"] > 0
    registry.forget()
    registry.goes_dark()

    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert node.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert registry.requests == []
    (shown,) = agent.status()["forwarded"]
    assert (shown["bridge"], shown["networks"]) == ("docker0", ["172.30.0.0/24", "2001:db8:30::/64"])
    assert "docker0" in node.tidegate("status").or_raise().stdout


@pytest.mark.slow
def test_over_ipv6_too(lab: Lab, node: Node, friend: Node, registry: Registry, resolver: Resolver) -> None:
    """N21, N12: to the bridge's own address of that family."""
    resolver.answer(dual_stack=True)
    agent = start(node)
    friend.run(["curl", "-6sS", "-o", "/dev/null", f"https://{REGISTRY}/v2/"]).or_raise()

    assert agent.metrics()[INTERCEPTED] == 1


def test_without_the_word_containers_go_past_and_are_counted(
    lab: Lab, node: Node, friend: Node, registry: Registry
) -> None:
    """N21, N10: it is opt-in; the bypass detector says what it would be good for."""
    agent = start(node, "")
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])

    assert agent.metrics()[INTERCEPTED] == 0
    until(lambda: agent.status()["bypassed"]["causes"]["forwarded"] > 0, "the connections are noticed")
    assert agent.status()["forwarded"] == []
    assert agent.status()["bypassed"]["recent"][0]["host"] == REGISTRY


def test_a_container_that_does_not_trust_the_node_loses_one_connection_and_is_then_left_alone(
    lab: Lab, node: Node, stranger: Node, friend: Node, registry: Registry
) -> None:
    """N21, N9: nobody can look into it beforehand; its address is remembered, others are not concerned."""
    agent = start(node)
    asked = ["curl", "-sS", "-o", "/dev/null", f"https://{REGISTRY}/v2/"]
    first = stranger.run(asked)
    assert not first.ok
    assert "certificate" in first.stderr

    assert stranger.pull("skopeo", SMALL).brought(lab.images[SMALL])
    (left_alone,) = agent.status()["clients_spliced"]
    assert (left_alone["exe"], left_alone["reason"]) == ("a container at 172.30.0.2", "distrusted")
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert agent.metrics()[INTERCEPTED] > 0


def test_what_the_nodes_own_login_opens_is_not_for_containers(
    lab: Lab, node: Node, friend: Node, registry: Registry
) -> None:
    """N21, C15: shared with the node is not shared with whatever runs on it."""
    alice = registry.users["alice"]
    node.write("/etc/tidegate/password", alice.password, mode=0o600)
    login = f'[[credential]]\nregistry = "docker.io"\nusername = "{alice.name}"\nshare = "node"\n'
    login += 'password_file = "/etc/tidegate/password"\n'
    node.install_trust()
    agent = node.start_agent(FORWARDED + login).wait_steering()
    until(lambda: agent.status()["forwarded"], "the bridge is steered")
    private = "docker.io/alice/private:1"
    assert node.pull("skopeo", private).brought(lab.images[private])

    assert not friend.pull("skopeo", private).ok
    until(lambda: agent.status()["bypassed"]["causes"]["node_login"] > 0, "it is said why")


@pytest.mark.parametrize(
    "verdict",
    [
        "drop",
        pytest.param("reject", marks=pytest.mark.slow),
        pytest.param("reject with tcp reset", marks=pytest.mark.slow),
    ],
)
def test_a_firewall_that_drops_what_is_redirected_costs_no_pull_and_is_named(
    lab: Lab, node: Node, friend: Node, registry: Registry, verdict: str
) -> None:
    """N21, I1: within a second the client sends again, and goes past; what to type is said."""
    chain = "{ type filter hook input priority 0; }"
    for rule in (["table", "ip", "host"], ["chain", "ip", "host", "input", chain]):
        node.run(["nft", "add", *rule]).or_raise()
    node.run(
        [
            "nft",
            "add",
            "rule",
            "ip",
            "host",
            "input",
            "meta",
            "l4proto",
            "tcp",
            "iifname",
            "docker0",
            *verdict.split(),
        ]
    ).or_raise()
    agent = start(node)
    asked = ["curl", "-sS", "-o", "/dev/null", f"https://{REGISTRY}/v2/"]

    answered = friend.run(asked)
    assert answered.ok or verdict == "reject", "an ICMP message may reach the client before its own retry"
    until(lambda: not agent.status()["forwarded"][0]["steered"], "the bridge is not steered any more")
    (told,) = agent.status()["forwarded"]
    assert "firewall drops" in told["reason"]
    assert told["action"].startswith("iptables -I INPUT -i docker0 -p tcp --dport 8443")
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert agent.metrics()[INTERCEPTED] == 0


@pytest.mark.slow
def test_a_firewall_that_lets_in_what_is_redirected_is_content(
    lab: Lab, node: Node, friend: Node, registry: Registry
) -> None:
    """N21: the rule that is recommended does it, with every other way in closed."""
    node.run(["iptables", "-P", "INPUT", "DROP"]).or_raise()
    node.run(["iptables", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT"]).or_raise()
    node.run(
        ["iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"]
    ).or_raise()
    match = "-i docker0 -p tcp --dport 8443 -m conntrack --ctstate DNAT -j ACCEPT"
    node.run(["iptables", "-I", "INPUT", *match.split()]).or_raise()
    agent = start(node)

    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert agent.metrics()[INTERCEPTED] > 0


def test_nobody_else_gets_in(lab: Lab, node: Node, friend: Node) -> None:
    """N21, I5: neither from the LAN nor from a container that dials the agent itself."""
    agent = start(node)
    other = lab.add_node("other")
    bridge_address = "172.30.0.1"
    other.run(["ip", "route", "add", "172.30.0.0/24", "via", "10.77.0.2"]).or_raise()
    for address in (bridge_address, "10.77.0.2"):
        dialled = other.run(["curl", "-sSk", "--max-time", "5", f"https://{address}:8443/v2/"])
        assert not dialled.ok
    assert agent.metrics()[OWN_ADDRESS] == 0, "it cannot even be connected to"
    # The one-eyed case: routed through the node, to a registry's address, from outside.
    other.run(["ip", "route", "replace", "203.0.113.0/24", "via", "10.77.0.2"]).or_raise()
    shown = other.run(["curl", "-sSkv", "-o", "/dev/null", "--max-time", "5", f"https://{REGISTRY}/v2/"])
    assert "Lab Internet CA" in shown.stderr
    dialled = friend.run(["curl", "-sSk", "--max-time", "5", f"https://{bridge_address}:8443/v2/"])
    assert not dialled.ok
    assert agent.metrics()[OWN_ADDRESS] == 1


def test_a_bridge_with_the_hosts_own_cable_on_it_does_not_count(lab: Lab, node: Node, friend: Node) -> None:
    """N21: strangers would come in by it."""
    agent = start(node)
    node.run(["ip", "link", "add", "cable0", "type", "vxlan", "id", "7", "dstport", "4789"]).or_raise()
    node.run(["ip", "link", "set", "cable0", "master", "docker0", "up"]).or_raise()
    until(lambda: agent.status()["forwarded"] == [], "the bridge does not count any more")
    assert 'iifname "docker0"' not in node.run(["nft", "list", "ruleset"]).stdout.replace("oifname", "")

    node.run(["ip", "link", "delete", "cable0"]).or_raise()
    until(lambda: agent.status()["forwarded"], "it counts again")


ANSWERED = """
import socket, sys, time
name, address = sys.argv[1:]
found = socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)[0][4][0]
assert found == address, found
"""


def test_what_a_container_was_answered_is_steered(
    lab: Lab, node: Node, friend: Node, resolver: Resolver
) -> None:
    """N21, N1: nobody on the host asked for that name."""
    agent = start(node)
    resolver.answer(records={"fresh.gcr.io": [lab.registry.addresses["registry-1.docker.io"][0] + 88]})
    before = agent.status()["steering"]["addresses"]
    friend.run([sys.executable, "-c", ANSWERED, "fresh.gcr.io", "203.0.113.99"]).or_raise()
    until(lambda: agent.status()["steering"]["addresses"] == before + 1, "its address is steered")
    friend.run(["curl", "-sS", "-o", "/dev/null", "https://fresh.gcr.io/v2/"])

    assert agent.metrics()[INTERCEPTED] == 1


def test_a_killed_or_hung_agent_leaves_containers_their_pulls(
    lab: Lab, node: Node, friend: Node, registry: Registry
) -> None:
    """N21, I1, N4, N5: the rules are in the owned table and need the lease, as the host's do."""
    agent = start(node)
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    agent.kill(signal.SIGSTOP)
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])
    agent.supervisor.kill(signal.SIGKILL)
    until(
        lambda: "table inet tidegate " not in node.run(["nft", "list", "tables"]).stdout + " ", "it is gone"
    )
    registry.forget()
    assert friend.pull("skopeo", SMALL).brought(lab.images[SMALL])

    assert registry.requests_for("bytes")


@pytest.mark.slow
def test_it_leaves_nothing(node: Node, friend: Node) -> None:
    """I4: rules, listeners and sockets of the bridge go with the agent."""
    # The kernel adds link-local addresses in its own time.
    before = replace(Footprint.of(node), addresses="")
    agent = start(node)
    assert friend.pull("skopeo", SMALL).ok
    assert agent.stop() == 0

    assert replace(Footprint.of(node), addresses="") == before


@pytest.mark.slow
def test_another_back_end_is_refused_in_words(node: Node) -> None:
    """N21: by `config check`, with what to type."""
    node.write("/etc/tidegate/other.toml", FORWARDED + 'backend = "none"\n')
    refused = node.tidegate("config", "check", "/etc/tidegate/other.toml")

    assert refused.exit_code == 2
    assert "steering.forwarded = true needs nft" in refused.stderr
    assert 'set steering.backend to "nft"' in refused.stderr
