"""Every way in which resolv.conf says whom to ask, on a node with an agent.

A name below `*.gcr.io` cannot be looked up ahead: when its address is steered, its look-up was seen. Names
are looked up by libc (getent), unless a test says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

import pytest

from lab import Agent, Host, Lab, Node, Resolver, ask, until
from lab.local_dns import start_dnsmasq
from lab.network import on_the_lan
from lab.resolver import HOST
from netns.test_names import NFT, steered

GOOD, OTHER = "10.77.0.53", "10.77.0.54"
SILENT, REFUSING, TCP_ONLY = "10.77.0.55", "10.77.0.56", "10.77.0.57"
ROUTER = "fe80::1"
SMALL_1 = "docker.io/library/small:1"
ORIGIN = "https://registry-1.docker.io/v2/"
BLOCK = f"""
table inet lab {{
    chain input {{
        type filter hook input priority 0
        ip daddr {SILENT} drop
        ip daddr {TCP_ONLY} udp dport 53 drop
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Beside the lab's resolver: one that disagrees, some that fail, and a router's, which is link-local."""

    other: Resolver
    router: Host


@pytest.fixture(scope="module")
def session_servers(session_lab: Lab) -> Iterator[Servers]:
    network = session_lab.network
    with Host("other") as other, Host("router") as router:
        network.plug_into_lan(other, [*on_the_lan(54), IPv4Interface(f"{TCP_ONLY}/24")])
        network.plug_into_lan(router, on_the_lan(58))
        # Else ICMP says no once a second, and that is all that these tests would measure.
        other.run(["sysctl", "-qw", "net.ipv4.icmp_ratelimit=0"]).or_raise()
        for address in (SILENT, REFUSING):
            other.run(["ip", "address", "add", f"{address}/32", "dev", "lo"]).or_raise()
        router.run(["ip", "address", "add", f"{ROUTER}/64", "dev", "eth0", "nodad"]).or_raise()
        other.run(["nft", "-f", "-"], stdin=BLOCK.encode()).or_raise()
        start_dnsmasq(router, "interface=eth0", "except-interface=lo", f"server={GOOD}", listen="")
        yield Servers(other=Resolver(other, network, {}, []), router=router)


@pytest.fixture
def servers(session_servers: Servers, lab: Lab) -> Servers:
    lab.resolver.answer(records={f"w{number}.gcr.io": [at(number)] for number in range(30)})
    theirs = {f"w{number}.gcr.io": [at(number, other=True)] for number in range(30)}
    session_servers.other.answer(records={**lab.resolver.names, **theirs})
    return session_servers


def at(number: int, *, other: bool = False) -> IPv4Address:
    """The address of w<number>.gcr.io, as the lab's resolver or the other one has it."""
    return IPv4Address(f"203.0.113.{(200 if other else 150) + number}")


def use(node: Node, *servers: str, options: str = "", search: str = "") -> None:
    """Replace resolv.conf as most programs do: by a rename."""
    lines = [f"nameserver {server}" for server in servers]
    lines += [f"options {options}"] if options else []
    lines += [f"search {search}"] if search else []
    node.write("/etc/resolv.conf.new", "\n".join([*lines, ""]))
    node.path("/etc/resolv.conf.new").replace(node.path("/etc/resolv.conf"))


def followed(agent: Agent, *servers: str) -> None:
    until(lambda: agent.status()["dns"]["resolvers"] == [*servers], f"the agent follows {servers}")


def looked_up(node: Node, name: str, *, timeout_s: float = 60) -> set[str]:
    """The addresses that libc finds for a name; none when it finds none."""
    found = node.run(["getent", "ahosts", name], timeout_s=timeout_s)
    return {line.split()[0] for line in found.stdout.splitlines()}


def start_agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent(NFT).wait_steering()


def seconds(node: Node, name: str) -> float:
    started = time.monotonic()
    assert looked_up(node, name)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "dead",
    [(REFUSING,), (SILENT,), pytest.param((REFUSING, SILENT), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_dead_servers_before_a_living_one_cost_what_they_cost_without_an_agent(
    node: Node, servers: Servers, dead: tuple[str, ...]
) -> None:
    """N13, I1: other names and steered ones resolve, no later than direct, and pulls come through."""
    use(node, *dead, GOOD, options="timeout:1")
    direct_s = max(seconds(node, HOST), seconds(node, "w1.gcr.io"))
    start_agent(node)

    other_s, steered_s = seconds(node, HOST), seconds(node, "w2.gcr.io")

    assert f"{at(2)} . 443" in steered(node)
    assert max(other_s, steered_s) < direct_s + 0.9, (direct_s, other_s, steered_s)
    assert ask(node, ORIGIN).cache == "bypass"


@pytest.mark.slow
def test_a_pull_with_a_silent_first_server_takes_no_longer_than_without_an_agent(
    node: Node, servers: Servers, lab: Lab
) -> None:
    """N13, I1: each of the client's look-ups waits for the dead server, as ever; our own do so once."""
    use(node, SILENT, GOOD, options="timeout:1")
    direct = node.pull("skopeo", SMALL_1)
    start_agent(node)

    through = node.pull("skopeo", SMALL_1)

    assert direct.ok
    assert through.contents == lab.images[SMALL_1].contents, through.stderr
    assert through.duration_s < direct.duration_s + 2


OPTIONS = [
    *("rotate", "timeout:1 attempts:1", "edns0", "edns0 trust-ad", "single-request", "no-aaaa"),
    *("single-request-reopen", "ndots:4", "use-vc", "rotate use-vc edns0"),
]


def test_whatever_options_libc_is_given_names_are_steered(node: Node, servers: Servers) -> None:
    """N12, N13: each of two servers' answers, over whichever transport, with whatever in the query."""
    use(node, GOOD, OTHER)
    agent = start_agent(node)
    for number, options in enumerate(OPTIONS):
        use(node, GOOD, OTHER, options=options)
        for turn in range(2):  # `rotate` begins with a random server
            name = f"w{2 * number + turn}.gcr.io"
            found = looked_up(node, name)
            assert len(found) == 1, options
            assert {f"{address} . 443" for address in found} <= steered(node), (options, found)
    assert agent.status()["dns"]["resolvers"] == [GOOD, OTHER]


def test_a_server_that_speaks_tcp_alone_is_enough(node: Node, servers: Servers, lab: Lab) -> None:
    """N13: UDP is filtered, and the host told so: the agent's own look-ups go over TCP, or no pull would."""
    use(node, TCP_ONLY, options="use-vc")
    agent = start_agent(node)

    assert looked_up(node, "w1.gcr.io") == {str(at(1, other=True))}
    assert f"{at(1, other=True)} . 443" in steered(node)
    registry = lab.registry.addresses["registry-1.docker.io"][0]
    until(lambda: f"{registry} . 443" in steered(node), "names are looked up ahead")
    pull = node.pull("skopeo", SMALL_1)
    assert pull.contents == lab.images[SMALL_1].contents, pull.stderr
    assert agent.status()["dns"]["resolver_reachable"]


def test_a_name_is_steered_however_libc_completes_it(node: Node, servers: Servers) -> None:
    """N13: by a search domain, after one was tried in vain, or with a final dot."""
    use(node, GOOD, search="example.org gcr.io", options="ndots:3")
    start_agent(node)

    assert looked_up(node, "w1") == {str(at(1))}
    assert looked_up(node, "w2.gcr.io") == {str(at(2))}
    assert looked_up(node, "w3.gcr.io.") == {str(at(3))}
    assert {f"{at(number)} . 443" for number in (1, 2, 3)} <= steered(node)
    assert ask(node, ORIGIN).cache == "bypass"
    assert ask(node, ORIGIN.replace(".io/", ".io./")).cache == "bypass"


def test_a_link_local_server_is_steered_over_both_transports(node: Node, servers: Servers, lab: Lab) -> None:
    """N12: what a router advertises; the client's socket is bound to the link, where ::1 is not."""
    server = f"{ROUTER}%eth0"
    use(node, server)
    agent = start_agent(node)
    # The link's own address may be in its duplicate detection still (RFC 4862 5.4): then it is followed.
    until(lambda: not agent.status()["dns"]["unsteerable"], "the link's address is served")
    assert agent.status()["dns"]["resolvers"] == [server]

    assert looked_up(node, "w1.gcr.io") == {str(at(1))}
    assert node.dig(f"@{server}", "+tcp", "+short", "w2.gcr.io").stdout.strip() == str(at(2))
    assert node.dig(f"@{server}", "+short", HOST).stdout.strip()
    assert {f"{at(number)} . 443" for number in (1, 2)} <= steered(node)
    pull = node.pull("skopeo", SMALL_1)
    assert pull.contents == lab.images[SMALL_1].contents, pull.stderr

    agent.supervisor.kill()
    agent.supervisor.wait()
    assert looked_up(node, "w3.gcr.io") == {str(at(3))}
    assert node.dig(f"@{server}", "+tcp", "+short", "w3.gcr.io").stdout.strip() == str(at(3))


def test_a_new_address_on_the_link_is_followed(node: Node, servers: Servers) -> None:
    """N12, I1: the interface comes back with another one, and the look-ups land there."""
    use(node, f"{ROUTER}%eth0")
    agent = start_agent(node)
    node.run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "link"]).or_raise()
    until(lambda: agent.status()["dns"]["unsteerable"], "the loss is noticed")
    (finding,) = agent.status()["dns"]["unsteerable"]
    assert finding["what"] == f"resolver {ROUTER}%eth0"
    node.run(["ip", "-6", "address", "add", "fe80::77/64", "dev", "eth0", "nodad"]).or_raise()
    until(lambda: not agent.status()["dns"]["unsteerable"], "the new address is followed")

    assert looked_up(node, "w1.gcr.io") == {str(at(1))}
    assert f"{at(1)} . 443" in steered(node)


def test_a_servers_own_answer_reaches_who_asked_it(node: Node, servers: Servers) -> None:
    """N2, split horizon: each answer is for who asked, neither replaces the other, both are steered."""
    use(node, GOOD, OTHER)
    start_agent(node)

    for _ in range(2):  # from the resolver, then from memory
        for server, expected in ((GOOD, at(1)), (OTHER, at(1, other=True))):
            for transport in ("+notcp", "+tcp"):
                assert node.dig(f"@{server}", transport, "+short", "w1.gcr.io").stdout.strip() == str(
                    expected
                )
    assert {f"{at(1)} . 443", f"{at(1, other=True)} . 443"} <= steered(node)


def test_resolv_conf_may_be_replaced_in_every_way_while_the_agent_runs(node: Node, servers: Servers) -> None:
    """N2: in place, by a rename, by a link that is switched; empty for a moment; a server taken out."""
    use(node, GOOD)
    agent = start_agent(node)
    conf = node.path("/etc/resolv.conf")

    conf.write_text(f"nameserver {OTHER}\n")  # in place
    followed(agent, OTHER)
    assert looked_up(node, "w1.gcr.io") == {str(at(1, other=True))}
    conf.write_text("")  # half written: nothing is believed of it at once
    assert agent.status()["dns"]["resolvers"] == [OTHER]
    use(node, OTHER, GOOD)
    followed(agent, OTHER, GOOD)
    assert node.dig(f"@{GOOD}", "+short", "w2.gcr.io").stdout.strip() == str(at(2))
    for name, server in (("one", GOOD), ("two", OTHER)):
        node.write(f"/run/{name}.conf", f"nameserver {server}\n")
    conf.unlink()
    conf.symlink_to("../run/one.conf")
    followed(agent, GOOD)
    node.path("/etc/resolv.link").symlink_to("../run/two.conf")
    node.path("/etc/resolv.link").replace(conf)
    followed(agent, OTHER)
    assert looked_up(node, "w3.gcr.io") == {str(at(3, other=True))}

    expected = {at(1, other=True), at(2), at(3, other=True)}
    assert {f"{address} . 443" for address in expected} <= steered(node)


def test_a_look_up_on_its_way_ends_well_though_its_server_is_taken_out(
    node: Node, servers: Servers, resolver: Resolver
) -> None:
    """N2, I1: the answer comes after the rules have changed, and still as from the server that was asked."""
    use(node, GOOD)
    agent = start_agent(node)
    resolver.goes_dark("hung")
    asking = node.spawn(["dig", "+tries=1", "+time=10", "+short", f"@{GOOD}", "w1.gcr.io"], log="asking")
    until(
        lambda: agent.metrics()['tidegate_dns_queries_total{outcome="forwarded"}'], "the query is forwarded"
    )

    use(node, OTHER)
    followed(agent, OTHER)
    resolver.comes_back()

    assert asking.wait(15) == 0
    assert asking.log.strip() == str(at(1))
    assert f"{at(1)} . 443" in steered(node)


def test_names_of_the_hosts_file_are_steered_and_used_where_nothing_resolves(
    node: Node, resolver: Resolver, lab: Lab
) -> None:
    """N1, I1: no resolver at all; clients read the file, and the agent's own connections go the same way."""
    hosts = "127.0.0.1 localhost\n" + "".join(
        f"{addresses[0]} {name}\n" for name, addresses in resolver.names.items()
    )
    node.write("/etc/resolv.conf", "")
    node.write("/etc/hosts", f"{hosts}203.0.113.77 w1.gcr.io\n127.0.0.9 w2.gcr.io\n")
    agent = start_agent(node)
    until(lambda: "203.0.113.77 . 443" in steered(node), "the file's names are steered")

    pull = node.pull("skopeo", SMALL_1)

    assert pull.contents == lab.images[SMALL_1].contents, pull.stderr
    assert ask(node, ORIGIN).cache == "bypass"
    status = agent.status()["dns"]
    assert [found["what"] for found in status["unsteerable"]] == ["127.0.0.9 w2.gcr.io in /etc/hosts"]
    node.write("/etc/hosts", f"{hosts}203.0.113.78 w1.gcr.io\n")
    until(lambda: "203.0.113.78 . 443" in steered(node), "a change of the file is followed")
    assert not agent.status()["dns"]["unsteerable"]


def test_a_resolver_on_the_lan_is_enough_without_a_default_route(
    node: Node, servers: Servers, lab: Lab
) -> None:
    """N2: names resolve and are learned; connections fail as they would, and work again with the route."""
    use(node, GOOD)
    lab.network.remove_default_route(node)
    start_agent(node)

    assert looked_up(node, "w1.gcr.io") == {str(at(1))}
    assert f"{at(1)} . 443" in steered(node)
    refused = node.run(["curl", "-sS", "--max-time", "10", ORIGIN])
    assert refused.exit_code == 7, refused.stderr  # no route: as without an agent
    lab.network.restore_default_route(node)
    assert ask(node, ORIGIN).cache == "bypass"
