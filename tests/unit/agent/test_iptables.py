"""The iptables back end's rules and sets as values: their order, what is exempt, what is taken out again."""

import struct
from ipaddress import ip_address

import pytest

from tidegate_agent.steering import IptablesSteering
from tidegate_agent.steering.exemption import DEFAULT_MARK, ByUid
from tidegate_agent.steering.iptables import ipset
from tidegate_agent.steering.iptables.conntrack import _release
from tidegate_agent.steering.iptables.programs import ProgramFailed
from tidegate_agent.steering.iptables.refusal import refusal
from tidegate_agent.steering.iptables.rules import Found, found, removed, replaced, restored
from tidegate_agent.steering.nfnetlink import RequestRefused
from tidegate_agent.steering.plan import Plan
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint

PLAN = Plan(
    port=8443,
    exemption=DEFAULT_MARK,
    dns_udp={
        ip_address("192.0.2.53"): 5401,
        ip_address("2001:db8::53"): 5402,
        ip_address("127.0.0.74"): 5400,
    },
    dns_tcp_port=5300,
    dns_tcp_direct_uids=(101,),
    zone=Zone.of(["Quay.io", "*.gcr.io"]),
)
REDIRECT = "-j REDIRECT --to-ports"


def test_the_probe_comes_first_then_the_exemption_then_the_lease() -> None:
    """I3, I5, N5: everything but the probe needs the lease, and ours leave before it."""
    query = "-A tidegate -d 192.0.2.53/32 -p udp -m udp --dport 53"
    search = "-m string --algo bm --icase --hex-string"
    assert replaced(PLAN, 4).splitlines() == [
        "*nat",
        ":tidegate - [0:0]",
        f"-A tidegate -d 127.0.0.74/32 -p tcp -m tcp --dport 443 {REDIRECT} 8443",
        f"-A tidegate -d 127.0.0.74/32 -p tcp -m tcp --dport 53 {REDIRECT} 5300",
        "-A tidegate -d 127.0.0.74/32 -p udp -m udp --dport 53 -j CONNMARK --set-xmark 0x74/0xff",
        f"-A tidegate -d 127.0.0.74/32 -p udp -m udp --dport 53 -m connmark --mark 0x74/0xff {REDIRECT} 5400",
        "-A tidegate -m mark --mark 0x74/0xff -j RETURN",
        "-A tidegate -m set ! --match-set tidegate_alive4 dst -j RETURN",
        f"-A tidegate -p tcp -m set --match-set tidegate_steered4 dst,dst {REDIRECT} 8443",
        "-A tidegate -p tcp -m owner --uid-owner 101 -m tcp --dport 53 -j RETURN",
        f"-A tidegate -d 192.0.2.53/32 -p tcp -m tcp --dport 53 {REDIRECT} 5300",
        f'{query} {search} "|0367637202696f00|" -j CONNMARK --set-xmark 0x74/0xff',
        f'{query} {search} "|047175617902696f00|" -j CONNMARK --set-xmark 0x74/0xff',
        f"{query} -m connmark --mark 0x74/0xff {REDIRECT} 5401",
        "COMMIT",
    ]


def test_where_names_cannot_be_read_every_query_is_steered() -> None:
    """N15: a kernel without xt_string; the responder forwards what it does not know."""
    text = replaced(PLAN, 4, names=False)

    assert "string" not in text
    assert text.count("-p udp -m udp --dport 53 -j CONNMARK --set-xmark 0x74/0xff") == 2


def test_ipv6_has_its_own_rules_sets_and_probe() -> None:
    """N12: and nothing of IPv4 in them."""
    text = replaced(Plan(port=8443, exemption=ByUid(uid=998), dns_udp=PLAN.dns_udp), 6)

    assert f"-d ::1/128 -p tcp -m tcp --dport 116 {REDIRECT} 8443" in text
    assert "-m owner --uid-owner 998 -j RETURN" in text
    assert "tidegate_alive6" in text
    assert (
        f"-d 2001:db8::53/128 -p udp -m udp --dport 53 -m connmark --mark 0x74/0xff {REDIRECT} 5402" in text
    )
    assert "dport 53 -j REDIRECT --to-ports 0" not in text
    assert "." not in text


def test_what_is_there_is_replaced_in_one_go() -> None:
    """I4: another's jumps and rules are not looked at; ours are there once afterwards."""
    saved = (
        "*nat\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n:tidegate - [0:0]\n:tidegate_for_77 - [0:0]\n"
        "-A OUTPUT -j tidegate\n-A OUTPUT -j DOCKER\n-A OUTPUT -j tidegate\n-A OUTPUT -j tidegated\nCOMMIT\n"
    )
    there = found(saved, "*raw\n:OUTPUT ACCEPT [0:0]\n:tidegate - [0:0]\n-A OUTPUT -j tidegate\nCOMMIT\n")
    lines = restored(PLAN, 4, keeper="tidegate_for_78", instead_of=there).splitlines()

    assert there == Found(jumps=2, chain=True, keepers=("tidegate_for_77",), raw_jumps=1, raw_chain=True)
    assert lines.count("-D OUTPUT -j tidegate") == 3
    assert lines[-2:] == ["-I OUTPUT -j tidegate", "COMMIT"]
    assert "-X tidegate_for_77" in lines
    assert removed(there).splitlines() == [
        *("*raw", "-D OUTPUT -j tidegate", "-F tidegate", "-X tidegate", "COMMIT"),
        "*nat",
        *["-D OUTPUT -j tidegate"] * 2,
        *("-F tidegate", "-X tidegate", "-F tidegate_for_77", "-X tidegate_for_77"),
        "COMMIT",
    ]
    assert removed(Found()) == ""


def test_our_own_queries_are_tracked_in_a_zone_of_their_own() -> None:
    """I5: a client's query from a port that one of ours has is another flow."""
    text = restored(PLAN, 4, keeper="tidegate_for_1", instead_of=Found())
    without = restored(PLAN, 4, keeper="tidegate_for_1", instead_of=Found(), zone=False)

    rule = "-A tidegate -p udp -m mark --mark 0x74/0xff -m udp --dport 53 -j CT --zone-orig 116"
    assert text.partition("*nat")[0].splitlines() == [
        *("*raw", ":tidegate - [0:0]", rule, "-I OUTPUT -j tidegate", "COMMIT")
    ]
    assert text.endswith(without)


def test_a_lease_is_rounded_down_and_an_address_up() -> None:
    """N5: ipset counts whole seconds; the lease never outlasts what was configured."""

    def timeout(seconds: int) -> bytes:
        return struct.pack("=HH", 8, 6 | 0x4000) + struct.pack("!I", seconds)

    (added,) = ipset.add([(Endpoint.of("192.0.2.1", 443), 1.2)])

    assert ipset.lease(4, 3.9).body.count(timeout(3)) == 2
    assert ipset.lease(4, 1.0).body.count(timeout(1)) == 2
    assert timeout(2) in added.body


def test_many_addresses_are_split_into_requests_that_fit() -> None:
    """I8: a netlink attribute ends at 64 KiB."""
    many = [(Endpoint.of(f"2001:db8::{number:x}", 443), 60.0) for number in range(1200)]
    requests = ipset.add([*many, (Endpoint.of("192.0.2.1", 5000), 60.0)])

    assert len(requests) == 4
    assert all(len(request.body) < 65536 for request in requests)


@pytest.mark.parametrize(
    ("error", "cause", "next_step"),
    [
        (RequestRefused(1, doing="creating set x"), "no right to change sets (CAP_NET_ADMIN)", "as root"),
        (RequestRefused(4098, doing="creating set x"), "has no such sets", "modprobe -a ip_set_hash_ipport"),
        (ProgramFailed("there is no iptables-save here"), "not installed", "apt install iptables"),
        (ProgramFailed("iptables-save: Permission denied (you must be root)"), "no right", "CAP_NET_RAW"),
        (ProgramFailed("iptables-restore: Can't open socket to ipset."), "no right", "CAP_NET_RAW"),
        (ProgramFailed("iptables-restore: Couldn't load match `set'"), "load match", "modprobe -a"),
    ],
)
def test_a_refusal_names_the_cause_and_what_to_type(error: OSError, cause: str, next_step: str) -> None:
    """N15: each has another remedy."""
    refused = refusal(error)

    assert cause in refused.cause
    assert next_step in refused.next_step


def test_a_kernel_that_would_forget_every_flow_is_known_by_its_release() -> None:
    """I1: before Linux 4.1 a mark is not looked at when flows are deleted."""
    assert _release("3.10.0-1160.el7") == (3, 10)
    assert _release("4.1-rc2") > (4, 0)
    assert _release("6.18.44-fc") == (6, 18)


def test_the_dry_run_needs_neither_privilege_nor_programs() -> None:
    """DESIGN 9: --dry-run shows sets and rules of both IP versions."""
    shown = IptablesSteering(port=9443).dry_run()

    assert "create tidegate_steered4 hash:ip,port family inet maxelem 65536 timeout 0" in shown
    assert "# ip6tables-restore --noflush" in shown
    assert shown.count("--to-ports 9443") == 4
