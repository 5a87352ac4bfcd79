"""Daemons that resolve on the node itself: dnsmasq and unbound on 127.0.0.1, as resolv.conf names them.

What they tell their clients is learned between them and their clients. So it does not matter whom they ask,
in which way, nor whether they ask at all: forwarders that no file of the host names, a tree of authoritative
servers, other ports, their own cache.
"""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lab import Agent, Lab, Node, Process, Resolver, ask, until
from lab.local_dns import start_dnsmasq, start_tree, start_unbound
from lab.resolver import HOST, LARGE_TXT, MISSING
from netns.test_names import NFT, steered
from netns.test_resolver_setups import GOOD, ORIGIN, SMALL_1, looked_up

ROOT, LEAF = "10.77.0.61", "10.77.0.62"
HERE = "127.0.0.1"
FORWARD = ("forward-zone:", 'name: "."')


@pytest.fixture
def resolver(lab: Lab) -> Resolver:
    """The daemons' forwarder, which nothing on the node but their own configuration names."""
    lab.resolver.answer(records={f"w{number}.gcr.io": [at(number)] for number in range(10)})
    return lab.resolver


def at(number: int) -> IPv4Address:
    return IPv4Address(f"203.0.113.{150 + number}")


def start_agent(node: Node) -> Agent:
    node.write("/etc/resolv.conf", f"nameserver {HERE}\n")
    node.install_trust()
    return node.start_agent(NFT).wait_steering()


def serves(node: Node, agent: Agent, lab: Lab) -> bool:
    """Names are learned before libc has their addresses, others resolve, and a pull comes from the cache."""
    for number in (1, 2):
        assert looked_up(node, f"w{number}.gcr.io") == {str(at(number))}
        assert f"{at(number)} . 443" in steered(node)
    assert looked_up(node, HOST)
    assert not looked_up(node, MISSING)
    assert len(node.dig(f"@{HERE}", "+short", LARGE_TXT, "TXT").stdout) > 4000  # over TCP, as it must be
    assert agent.status()["dns"]["resolvers"] == [HERE]
    for _ in range(2):
        pull = node.pull("skopeo", SMALL_1)
        assert pull.contents == lab.images[SMALL_1].contents, pull.stderr
    assert agent.status()["cache"]["hits"] > 0
    return True


def start(node: Node, daemon: str) -> Process:
    match daemon:
        case "dnsmasq":
            return start_dnsmasq(node, f"server={GOOD}", "cache-size=1000")
        case "unbound":
            # Names in mixed case, and only as much of a name as each server has to know.
            strict = ["use-caps-for-id: yes", "qname-minimisation: yes", "prefetch: yes"]
            return start_unbound(node, strict, *FORWARD, f"forward-addr: {GOOD}")
        case "unbound over TCP":
            return start_unbound(node, ["tcp-upstream: yes"], *FORWARD, f"forward-addr: {GOOD}")
        case "dnsmasq before unbound":
            start_dnsmasq(node, f"server={GOOD}", port=5353)
            return start_unbound(node, [], *FORWARD, f"forward-addr: {HERE}@5353")
    raise ValueError(daemon)


@pytest.mark.parametrize(
    "daemon",
    [
        "dnsmasq",
        "unbound",
        pytest.param("unbound over TCP", marks=pytest.mark.slow),
        pytest.param("dnsmasq before unbound", marks=pytest.mark.slow),
    ],
)
def test_a_daemon_that_forwards_is_steered_in_front(
    node: Node, resolver: Resolver, lab: Lab, daemon: str
) -> None:
    """N2, N13: whoever it forwards to, by whichever transport and port."""
    start(node, daemon)

    assert serves(node, start_agent(node), lab)


@pytest.mark.parametrize("daemon", ["dnsmasq", pytest.param("unbound", marks=pytest.mark.slow)])
def test_what_a_daemon_has_in_its_cache_is_learned_from_there(
    node: Node, resolver: Resolver, daemon: str
) -> None:
    """DESIGN 4: known to the daemon before the agent came, so that no query leaves the host any more."""
    start(node, daemon)
    node.write("/etc/resolv.conf", f"nameserver {HERE}\n")
    assert looked_up(node, "w3.gcr.io") == {str(at(3))}
    start_agent(node)
    resolver.forget()

    assert looked_up(node, "w3.gcr.io") == {str(at(3))}

    assert f"{at(3)} . 443" in steered(node)
    assert ("A", "w3.gcr.io") not in resolver.queries


def test_an_unbound_that_asks_authoritative_servers_is_steered_in_front(
    node: Node, resolver: Resolver, lab: Lab
) -> None:
    """N2: a full resolver; the last answer comes from servers that no list could name."""
    for address in (ROOT, LEAF):
        resolver.host.run(["ip", "address", "replace", f"{address}/24", "dev", "eth0"]).or_raise()
    registry = lab.registry.addresses
    addresses = {name: found[0] for name, found in registry.items()} | {"w1.gcr.io": at(1)}
    tree = start_tree(resolver.host, ROOT, LEAF, addresses)
    node.write("/etc/root.hints", f". 300 NS root.test.\nroot.test. 300 A {ROOT}\n")
    options = ["root-hints: /etc/root.hints", "use-caps-for-id: yes", "do-ip6: no"]
    start_unbound(node, [*options, "qname-minimisation: yes"])
    start_agent(node)

    assert looked_up(node, "w1.gcr.io") == {str(at(1))}

    assert f"{at(1)} . 443" in steered(node)
    assert f"{LEAF} A w1.gcr.io." in tree.log.lower().replace(" a ", " A ")
    pull = node.pull("skopeo", SMALL_1)
    assert pull.contents == lab.images[SMALL_1].contents, pull.stderr
    tree.stop()


@pytest.mark.slow
def test_addresses_stay_steered_while_a_daemon_can_ask_nobody(
    node: Node, resolver: Resolver, lab: Lab
) -> None:
    """DESIGN 4: it answers SERVFAIL at once, so it is not silent; but nobody learns the addresses again."""
    resolver.answer(ttl_s=0)
    start(node, "unbound")
    start_agent(node)
    address = f"{lab.registry.addresses['registry-1.docker.io'][0]} . 443"
    until(lambda: address in steered(node), "the name is looked up ahead")
    resolver.goes_dark()

    with pytest.raises(TimeoutError):
        until(lambda: address not in steered(node), "a minute of grace is over", within_s=75, every_s=1)


@pytest.mark.parametrize("daemon", [pytest.param("dnsmasq", marks=pytest.mark.slow), "unbound"])
def test_a_daemon_whose_forwarder_is_gone_does_not_end_pulls(
    node: Node, resolver: Resolver, lab: Lab, daemon: str
) -> None:
    """C7: once that is noticed, steered names are told as they were known last, and pulls are offline."""
    resolver.answer(ttl_s=0)  # nothing for the daemon to remember
    start(node, daemon)
    agent = start_agent(node)
    assert node.pull("skopeo", SMALL_1).ok
    resolver.goes_dark()
    until(lambda: not agent.status()["dns"]["resolver_reachable"], "it is noticed", within_s=30)

    pull = node.pull("skopeo", SMALL_1)

    assert pull.contents == lab.images[SMALL_1].contents, pull.stderr
    assert ask(node, ORIGIN).cache
