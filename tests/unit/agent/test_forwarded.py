"""Containers behind bridges: which bridges count, what their rules say, and who is left alone (N21)."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from tidegate_agent.bridges import Link, bridges_of
from tidegate_agent.clients.forwarded import ForwardedClients
from tidegate_agent.steering.encoding import new_table
from tidegate_agent.steering.exemption import DEFAULT_MARK, ByUid
from tidegate_agent.steering.forwarded import Forwarded, ForwardedBridge
from tidegate_agent.steering.listing import statement_text
from tidegate_agent.steering.plan import Plan
from tidegate_agent.steering.ruleset import steering_table
from tidegate_agent.steering.statement import LeaseHeld, Redirect
from tidegate_agent.steering.watch import watch_table
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.interceptor import Arrival

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HERE = (
    (7, ip_interface("172.17.0.1/16")),
    (7, ip_interface("fe80::1/64")),
    (2, ip_interface("192.0.2.7/24")),
)


def link(index: int, name: str, kind: str, *, master: int = 0, up: bool = True) -> Link:
    return Link(index=index, name=name, kind=kind, master=master, up=up)


DOCKER0, VETH, ETH0 = link(7, "docker0", "bridge"), link(8, "veth1", "veth", master=7), link(2, "eth0", "")


def test_a_bridge_with_containers_counts_with_its_networks() -> None:
    """N21: link-local networks are not theirs alone."""
    (found,) = bridges_of([ETH0, DOCKER0, VETH], HERE, [2])

    assert (found.name, found.addresses) == ("docker0", (ip_interface("172.17.0.1/16"),))
    assert bridges_of([ETH0, DOCKER0], HERE, [2])
    assert bridges_of([ETH0, DOCKER0, link(9, "tap0", "tun", master=7)], HERE, [2])


@pytest.mark.parametrize(
    ("links", "uplinks"),
    [
        ([DOCKER0, VETH, link(2, "eth0", "", master=7)], []),
        ([DOCKER0, VETH, link(9, "vxlan0", "vxlan", master=7)], []),
        ([DOCKER0, VETH, link(9, "eth0.5", "vlan", master=7)], []),
        ([DOCKER0, VETH], [7]),
        ([link(7, "docker0", "bridge", up=False), VETH], []),
        ([link(7, "docker0", "dummy"), VETH], []),
        ([link(70, "br-of-nobody", "bridge"), VETH], []),
    ],
    ids=["a card", "an overlay", "a vlan", "the way outside", "down", "no bridge", "no address"],
)
def test_a_bridge_by_which_others_may_come_does_not_count(links: list[Link], uplinks: list[int]) -> None:
    """N21: the agent must not become a proxy for strangers."""
    assert bridges_of(links, HERE, uplinks) == ()


FORWARDED = Forwarded(
    bridges=(
        ForwardedBridge(
            interface="docker0", networks=(ip_network("172.17.0.0/16"), ip_network("2001:db8:17::/64"))
        ),
    ),
    resolvers=(ip_address("192.0.2.53"),),
    group=7475,
)


def lines(chain: str, plan: Plan) -> list[str]:
    (found,) = (each for each in steering_table(plan).chains if each.name == chain)
    return [" ".join(map(statement_text, rule)) for rule in found.rules]


PLAN = Plan(port=8443, exemption=DEFAULT_MARK, zone=Zone.of(["a.bc"]), forwarded=FORWARDED)


def test_what_comes_in_by_a_bridge_from_its_own_networks_is_redirected() -> None:
    """N21: no other interface, no other source; both families."""
    assert lines("from_bridges", PLAN) == [
        'meta l4proto @alive iifname "docker0" ip saddr 172.17.0.0/16 ip daddr . tcp dport @steered4 '
        'log prefix "tidegate sent" group 7475 snaplen 80 queue-threshold 1 redirect to :8443',
        'meta l4proto @alive iifname "docker0" ip6 saddr 2001:db8:17::/64 ip6 daddr . tcp dport @steered6 '
        'log prefix "tidegate sent" group 7475 snaplen 80 queue-threshold 1 redirect to :8443',
    ]
    assert lines("arrivals", PLAN) == [
        "meta l4proto != tcp return",
        'iifname "docker0" tcp dport 8443 ct state new ct status dnat '
        'log prefix "tidegate arrived" group 7475 snaplen 80 queue-threshold 1',
    ]
    assert lines("to_bridges", PLAN) == [
        "meta l4proto != udp return",
        'meta l4proto @alive oifname "docker0" ip saddr 192.0.2.53 udp sport 53 @th,160,8 0x1 '
        "@th,168,40 & 0xdfdfdfdfdf == 0x4102424300 "
        'log prefix "tidegate answered" group 7475 snaplen 4096 queue-threshold 1',
    ]


def test_every_redirection_needs_the_lease() -> None:
    """N5: a hung agent would hold containers, too."""
    redirects = [
        rule
        for chain in steering_table(PLAN).chains
        if chain.name == "from_bridges"
        for rule in chain.rules
        if isinstance(rule[-1], Redirect)
    ]

    assert len(redirects) == 2
    assert all(rule[0] == LeaseHeld() for rule in redirects)


def test_without_the_word_there_is_no_chain_for_others() -> None:
    """N21: it is opt-in, and costs nobody a comparison."""
    names = {chain.name for chain in steering_table(Plan(port=1, exemption=DEFAULT_MARK)).chains}

    assert names.isdisjoint({"from_bridges", "arrivals", "to_bridges"})
    assert all(
        not lines(name, Plan(port=1, exemption=DEFAULT_MARK, forwarded=Forwarded()))
        for name in ("from_bridges", "arrivals", "to_bridges")
    )


def test_the_table_that_watches_leaves_our_own_connections_out() -> None:
    """N10, I5: in the chain for this host's own; nothing in it has a verdict but for those."""
    own, forwarded = watch_table(exemption=ByUid(uid=998), ports=[443, 5000], group=7474).chains
    texts = [" ".join(map(statement_text, rule)) for rule in own.rules]

    assert texts[:2] == ["meta l4proto != tcp return", "meta skuid 998 return"]
    assert texts[2] == (
        "tcp dport 443 tcp doff 5 @th,160,16 0x1603 @th,200,8 0x1 limit rate 50/second burst 200 packets "
        'log prefix "tidegate own" group 7474 snaplen 4096 queue-threshold 1'
    )
    assert len(texts) == 2 + 4
    assert len(forwarded.rules) == 1 + 4
    assert new_table(watch_table(exemption=DEFAULT_MARK, ports=[443], group=7474))


def arrival(address: str, sni: str = "ghcr.io") -> Arrival:
    return Arrival(sni=sni, original=Endpoint.of("198.51.100.9", 443), peer=Endpoint.of(address, 4000))


def refusal() -> ssl.SSLError:
    error = ssl.SSLError(1, "alert")
    error.reason = "TLSV1_ALERT_UNKNOWN_CA"
    return error


def test_an_address_that_refused_the_certificate_is_left_alone_for_a_day() -> None:
    """N21, N9: that one and no other, whatever else a handshake may fail of."""
    now = [NOON]
    clients = ForwardedClients(has_login=lambda *_: False, now=lambda: now[0])
    clients.handshake_failed(arrival("172.17.0.2"), ConnectionResetError())
    assert clients.why_splice(arrival("172.17.0.2")) is None

    clients.handshake_failed(arrival("172.17.0.2"), refusal())
    assert clients.why_splice(arrival("172.17.0.2")) == "distrusted"
    assert clients.why_splice(arrival("172.17.0.3")) is None
    assert clients.left_alone() == ((ip_address("172.17.0.2"), NOON + timedelta(hours=24)),)

    now[0] = NOON + timedelta(hours=24)
    assert clients.why_splice(arrival("172.17.0.2")) is None
    assert clients.left_alone() == ()


def test_only_so_many_addresses_are_remembered() -> None:
    """I8: networks are large."""
    clients = ForwardedClients(has_login=lambda *_: False, now=lambda: NOON)
    for number in range(2000):
        clients.handshake_failed(arrival(f"172.17.{number >> 8}.{number & 255}"), refusal())

    assert len(clients.left_alone()) == 1024
    assert clients.why_splice(arrival("172.17.7.207")) == "distrusted"


def test_registries_for_which_the_node_has_a_login_are_withheld() -> None:
    """N21, C15: by name and port."""
    clients = ForwardedClients(has_login=lambda host, port: (host, port) == ("ghcr.io", 443))

    assert clients.withheld(arrival("172.17.0.2")) == "node_login"
    assert clients.withheld(arrival("172.17.0.2", "quay.io")) is None
