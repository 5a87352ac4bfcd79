"""systemd-resolved, as distributions set it up, under a real systemd: its stub, its links, its other doors.

One node is booted for this module; each test sets the daemon up as it needs it, so its cache is empty then.
No two tests look up the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from lab import Agent, Lab, Node, ask, until
from lab import resolved as package
from lab.booted import Booted
from lab.local_dns import start_dnsmasq, start_unbound
from lab.resolved import STUB, Resolved
from lab.resolver import HOST, LARGE_TXT
from netns.test_names import NFT, steered
from netns.test_resolver_setups import GOOD, ORIGIN, SMALL_1

VPN, ENCRYPTED = "10.77.0.64", "10.77.0.65"
DOT_NAME = "dns.test"
DNS, RESOLVE = "files dns", "files resolve [!UNAVAIL=return] dns"


@dataclass
class Site:
    """The booted node with systemd-resolved, and the servers around it."""

    lab: Lab
    node: Node
    machine: Booted
    resolved: Resolved
    agent: Agent

    def looked_up(self, name: str) -> set[str]:
        """As libc does it; where systemd runs, since it talks to nobody of another pid namespace."""
        found = self.machine.run("getent", "ahosts", name)
        return {line.split()[0] for line in found.stdout.splitlines()}

    def asks(self, sources: str) -> None:
        """Have libc find hosts so (nsswitch.conf(5))."""
        self.node.write("/etc/nsswitch.conf", f"passwd: files\ngroup: files\nhosts: {sources}\n")

    def restart_agent(self) -> None:
        """It has learned nothing then, but what it looks up ahead."""
        self.agent.stop()
        self.agent = self.node.start_agent(NFT).wait_steering()

    def follows(self, *servers: str) -> None:
        until(lambda: self.agent.status()["dns"]["resolvers"] == [STUB, *servers], f"{servers} are followed")


@pytest.fixture(scope="module")
def session_site(session_lab: Lab) -> Iterator[Site]:
    if reason := package.missing():
        pytest.skip(reason)
    session_lab.reset()
    session_lab.resolver.answer(records={f"w{number}.gcr.io": [at(number)] for number in range(20)})
    node, resolver = session_lab.node, session_lab.resolver.host
    for address in (VPN, ENCRYPTED):
        resolver.run(["ip", "address", "add", f"{address}/32", "dev", "lo"]).or_raise()
    vpn = start_dnsmasq(resolver, *(f"address=/w{n}.gcr.io/{at(n, vpn=True)}" for n in range(20)), listen=VPN)
    certificate = session_lab.authority.server([DOT_NAME])
    for name, pem in (("crt", certificate.certificate), ("key", certificate.key)):
        resolver.write(f"/etc/lab-dot.{name}", pem)
    tls = ["tls-port: 853", "tls-service-pem: /etc/lab-dot.crt", "tls-service-key: /etc/lab-dot.key"]
    forward = ("forward-zone:", 'name: "."', f"forward-addr: {GOOD}")
    access = "access-control: 10.77.0.0/24 allow"
    encrypted = start_unbound(resolver, [*tls, access], *forward, listen=ENCRYPTED, port=853)
    package.install(node)
    try:
        with Booted(node) as machine:
            resolved = Resolved(machine, [GOOD])
            resolved.stub()
            node.install_trust()
            yield Site(session_lab, node, machine, resolved, node.start_agent(NFT).wait_steering())
    finally:
        for process in (vpn, encrypted):
            process.stop()
        for address in (VPN, ENCRYPTED):
            resolver.run(["ip", "address", "del", f"{address}/32", "dev", "lo"])


@pytest.fixture
def site(session_site: Site) -> Site:
    session_site.asks(DNS)
    session_site.resolved.stub()
    session_site.resolved.configure([GOOD])
    session_site.follows(GOOD)
    return session_site


def at(number: int, *, vpn: bool = False) -> IPv4Address:
    """The address of w<number>.gcr.io, as the lab's resolver or the VPN's has it."""
    return IPv4Address(f"203.0.113.{(200 if vpn else 150) + number}")


def test_the_stubs_clients_are_steered(site: Site) -> None:
    """N2, N13: over UDP and TCP; a large answer, which systemd-resolved itself fetches over TCP; a pull."""
    node = site.node
    assert site.looked_up("w1.gcr.io") == {str(at(1))}
    assert node.dig(f"@{STUB}", "+tcp", "+short", "w2.gcr.io").stdout.strip() == str(at(2))
    assert {f"{at(1)} . 443", f"{at(2)} . 443"} <= steered(node)

    assert site.looked_up(HOST)
    assert len(node.dig(f"@{STUB}", "+time=5", "+short", LARGE_TXT, "TXT").stdout) > 4000
    pull = node.pull("skopeo", SMALL_1)
    assert pull.contents == site.lab.images[SMALL_1].contents, pull.stderr
    assert ask(node, ORIGIN).cache == "bypass"
    status = site.agent.status()["dns"]
    assert (status["resolvers"], status["unsteerable"]) == ([STUB, GOOD], [])


@pytest.mark.parametrize(("sources", "number"), [(DNS, 3), (RESOLVE, 4)], ids=["stub", "nss-resolve"])
def test_what_it_has_in_its_cache_is_learned_when_the_stub_is_asked(
    site: Site, sources: str, number: int
) -> None:
    """DESIGN 4: it was asked before the agent came; without DNS, nobody sees it, and status cannot know."""
    site.asks(sources)
    assert site.looked_up(f"w{number}.gcr.io") == {str(at(number))}
    site.restart_agent()

    assert site.looked_up(f"w{number}.gcr.io") == {str(at(number))}

    assert (f"{at(number)} . 443" in steered(site.node)) == (sources == DNS)


def test_clients_that_ask_it_without_dns_are_steered_by_its_own_queries(site: Site) -> None:
    """N2: nss-resolve and D-Bus; no packet of the client's says a name."""
    site.asks(RESOLVE)

    assert site.looked_up("w5.gcr.io") == {str(at(5))}
    assert str(at(6)) in site.resolved.ctl("query", "w6.gcr.io")

    assert {f"{at(5)} . 443", f"{at(6)} . 443"} <= steered(site.node)
    assert ask(site.node, ORIGIN).cache == "bypass"


COUNTER = f"""
table inet lab {{
    chain output {{
        type filter hook output priority 0
        ip daddr {GOOD} tcp dport 53 meta skuid systemd-resolve counter
    }}
}}
"""
"""Behind the chain that redirects: what goes elsewhere by then is not counted."""


def test_its_own_tcp_queries_go_direct(site: Site) -> None:
    """N13: it binds those to a link's server to the interface, whence loopback is not reached."""
    site.resolved.ctl("dns", "eth0", GOOD)
    site.resolved.ctl("domain", "eth0", "~example.org")
    site.node.run(["nft", "-f", "-"], stdin=COUNTER.encode()).or_raise()

    text = site.resolved.ctl("query", "--cache=no", "--type=TXT", LARGE_TXT)

    counted = site.node.run(["nft", "list", "table", "inet", "lab"]).or_raise().stdout
    site.node.run(["nft", "delete", "table", "inet", "lab"]).or_raise()
    assert len(text) > 4000
    assert "counter packets" in counted and "counter packets 0 " not in counted
    site.resolved.ctl("revert", "eth0")


def test_a_links_own_servers_and_routing_domains_are_followed(site: Site) -> None:
    """N2, split DNS: a VPN's server for some names only, which its resolv.conf does not list."""
    site.resolved.ctl("dns", "eth0", VPN)
    site.resolved.ctl("domain", "eth0", "~gcr.io")
    site.resolved.ctl("default-route", "eth0", "false")
    site.follows(GOOD, VPN)

    assert site.looked_up("w7.gcr.io") == {str(at(7, vpn=True))}
    site.asks(RESOLVE)
    assert site.looked_up("w8.gcr.io") == {str(at(8, vpn=True))}
    assert site.looked_up(HOST)

    assert {f"{at(n, vpn=True)} . 443" for n in (7, 8)} <= steered(site.node)
    site.resolved.ctl("revert", "eth0")
    site.follows(GOOD)


def test_dns_over_tls_is_steered_in_front_and_named_for_the_rest(site: Site) -> None:
    """Item 3: the stub's clients are; without DNS, names looked up ahead are, a wildcard's are not."""
    site.resolved.configure([f"{ENCRYPTED}#{DOT_NAME}"], "DNSOverTLS=yes")
    site.follows(ENCRYPTED)
    site.restart_agent()
    node = site.node

    assert site.looked_up("w9.gcr.io") == {str(at(9))}
    assert f"{at(9)} . 443" in steered(node)
    assert site.agent.status()["dns"]["unsteerable"] == []
    site.asks(RESOLVE)
    assert site.looked_up("w10.gcr.io") == {str(at(10))}
    assert f"{at(10)} . 443" not in steered(node)
    registry = site.lab.registry.addresses["registry-1.docker.io"][0]
    until(lambda: f"{registry} . 443" in steered(node), "names are looked up ahead")
    assert ask(node, ORIGIN).cache == "bypass"
    (finding,) = site.agent.status()["dns"]["unsteerable"]
    assert finding["what"] == "systemd-resolved with DNSOverTLS=yes"
    assert "DNSOverTLS=no" in finding["next_step"]
    assert "DNSOverTLS=yes" in node.tidegate("status").or_raise().stdout


def test_the_daemon_may_restart_and_resolv_conf_may_leave_the_stub(site: Site) -> None:
    """N2, I1: a restart loses nothing but its cache; the other link of the package names its servers."""
    site.resolved.restart()
    assert site.looked_up("w11.gcr.io") == {str(at(11))}
    link = site.node.path("/etc/resolv.new")
    link.symlink_to("../run/systemd/resolve/resolv.conf")
    link.replace(site.node.path("/etc/resolv.conf"))
    until(lambda: site.agent.status()["dns"]["resolvers"] == [GOOD], "its servers are asked without it")
    site.resolved.stop()

    assert site.looked_up("w12.gcr.io") == {str(at(12))}

    assert {f"{at(11)} . 443", f"{at(12)} . 443"} <= steered(site.node)
