"""The rules as values: their nft syntax, their order, what they exempt; and what a kernel's refusal means."""

import errno
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tidegate_agent.steering.eligibility import is_special
from tidegate_agent.steering.encoding import add_endpoints, lease, new_table
from tidegate_agent.steering.exemption import DEFAULT_MARK, ByMark, ByUid
from tidegate_agent.steering.keeper import orphans
from tidegate_agent.steering.listing import render, statement_text
from tidegate_agent.steering.netlink import NetlinkError, attributes, nest, text, u32
from tidegate_agent.steering.nft import NftSteering, start_refusal
from tidegate_agent.steering.plan import Plan
from tidegate_agent.steering.ruleset import keeper_table, steering_table
from tidegate_agent.steering.statement import LeaseHeld, Redirect, RewriteTo
from tidegate_agent.steering.table import Chain, OutputHook, Table
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint

PROBE = ip_address("127.0.0.74")
PLAN = Plan(
    port=8443,
    exemption=DEFAULT_MARK,
    zone=Zone.of(["ghcr.io"]),
    dns_udp={ip_address("192.0.2.53"): 5401, ip_address("fe80::1%eth0"): 5402, PROBE: 5400},
    dns_tcp_port=5300,
    dns_tcp_direct_uids=(101,),
)


def chain(table: Table, name: str) -> Chain:
    return next(chain for chain in table.chains if chain.name == name)


def lines(table: Table, name: str) -> list[str]:
    return [" ".join(map(statement_text, rule)) for rule in chain(table, name).rules]


def test_connections_are_steered_by_address_and_port_after_the_exemption() -> None:
    """N1, I5: the probe comes before the exemption, everything else after it."""
    assert lines(steering_table(PLAN), "steer") == [
        "ip daddr 127.0.0.74 tcp dport 443 redirect to :8443",
        "ip6 daddr ::1 tcp dport 116 redirect to :8443",
        "ip daddr 127.0.0.74 tcp dport 53 redirect to :5300",
        "meta mark & 0x000000ff == 0x00000074 return",
        "meta l4proto @alive ip daddr . tcp dport @steered4 redirect to :8443",
        "meta l4proto @alive ip6 daddr . tcp dport @steered6 redirect to :8443",
        "meta skuid 101 tcp dport 53 return",
        "meta l4proto @alive ip daddr 192.0.2.53 tcp dport 53 redirect to :5300",
        "meta l4proto @alive ip6 daddr fe80::1 tcp dport 53 redirect to :5300",
    ]


def test_replies_are_rewritten_without_an_exemption_and_without_the_lease() -> None:
    """N2: our own sockets send them, and one that is under way when the lease ends still arrives.

    The chain must not be of type route: each reply's route would be looked up again.
    """
    assert lines(steering_table(PLAN), "replies") == [
        "meta l4proto != udp return",
        "ip saddr 127.0.0.1 udp sport 5401 notrack ip saddr set 192.0.2.53 udp sport set 53",
        "ip6 saddr ::1 udp sport 5402 notrack ip6 saddr set fe80::1 udp sport set 53",
        "ip saddr 127.0.0.1 udp sport 5400 notrack ip saddr set 127.0.0.74 udp sport set 53",
    ]
    assert chain(steering_table(PLAN), "replies").hook == OutputHook(type="filter", priority=-300)


def test_queries_meet_the_probe_then_the_exemption_then_the_names() -> None:
    """N2, I5: nothing else meets more than it must."""
    assert lines(steering_table(PLAN), "dns") == [
        "meta l4proto != udp return",
        "udp dport != 53 return",
        "ip daddr 127.0.0.74 udp dport 53 notrack ip daddr set 127.0.0.1 udp dport set 5400",
        "meta mark & 0x000000ff == 0x00000074 return",
        "@th,160,8 0x4 @th,168,64 & 0xdfdfdfdfdfdfdfdf == 0x4748435202494f00 goto queries",
    ]


def test_queries_for_steered_names_are_rewritten_without_tracking() -> None:
    """N2: one local port a resolver."""
    assert lines(steering_table(PLAN), "queries") == [
        "meta l4proto @alive ip daddr 192.0.2.53 udp dport 53 notrack "
        "ip daddr set 127.0.0.1 udp dport set 5401",
        "meta l4proto @alive ip6 daddr fe80::1 udp dport 53 notrack ip6 daddr set ::1 udp dport set 5402",
    ]


@pytest.mark.parametrize("exemption", [DEFAULT_MARK, ByUid(uid=998)])
def test_whatever_changes_a_packet_of_the_hosts_needs_the_lease(exemption: ByMark | ByUid) -> None:
    """N5: a rule without the lease would go on steering while the agent hangs."""
    table = steering_table(Plan(port=8443, exemption=exemption, dns_udp=PLAN.dns_udp, dns_tcp_port=5300))
    changing = [
        rule
        for one in table.chains
        for rule in one.rules
        if isinstance(rule[-1], Redirect | RewriteTo)
        and not statement_text(rule[0]).startswith(("ip daddr 127.0.0.74", "ip6 daddr ::1"))
    ]

    assert len(changing) == 6
    assert all(rule[0] == LeaseHeld() for rule in changing)


LINK = Landing(
    resolver=ip_address("fe80::53%eth0"),
    address=ip_address("fe80::2%eth0"),
    udp_port=5403,
    tcp_port=5301,
)


def test_a_link_local_resolver_is_known_by_its_interface_too() -> None:
    """N12, I1: routers of two links often have the same address, and only eth0's is ours to steer here."""
    table = steering_table(replace(PLAN, dns_udp={PROBE: 5400}, dns_linked=(LINK,)))

    assert lines(table, "queries") == [
        'meta l4proto @alive oifname "eth0" ip6 daddr fe80::53 udp dport 53 notrack '
        "ip6 daddr set fe80::2 udp dport set 5403"
    ]
    assert lines(table, "replies")[-1] == (
        "ip6 saddr fe80::2 udp sport 5403 notrack ip6 saddr set fe80::53 udp sport set 53"
    )
    assert lines(table, "steer")[-1] == (
        'meta l4proto @alive oifname "eth0" ip6 daddr fe80::53 tcp dport 53 dnat ip6 to [fe80::2]:5301'
    )


def test_what_is_answered_to_a_former_resolvers_client_still_arrives() -> None:
    """N13: replies alone; no query is sent where nobody will listen soon."""
    former = Landing(
        resolver=ip_address("192.0.2.9"), address=ip_address("127.0.0.1"), udp_port=5409, tcp_port=5300
    )
    before, after = steering_table(PLAN), steering_table(replace(PLAN, dns_leaving=(former,)))

    assert lines(after, "replies")[-1] == (
        "ip saddr 127.0.0.1 udp sport 5409 notrack ip saddr set 192.0.2.9 udp sport set 53"
    )
    assert [lines(after, name) for name in ("dns", "queries", "steer")] == [
        lines(before, name) for name in ("dns", "queries", "steer")
    ]


def test_without_resolvers_dns_is_left_alone() -> None:
    """Nothing on port 53 is steered before the responder listens."""
    text = render([steering_table(Plan(port=8443, exemption=ByUid(uid=998)))])

    assert "port 53" not in text
    assert "goto" not in text
    assert "meta skuid 998 return" in text


def test_both_tables_have_an_owner_and_the_keeper_steers_nothing() -> None:
    """I4: neither outlives the processes that hold it."""
    assert steering_table(PLAN).owned
    assert render([keeper_table()]).splitlines() == [
        "table inet tidegate_keeper {",
        "\tflags owner",
        "",
        "\tchain nat {",
        "\t\ttype nat hook output priority -110; policy accept;",
        "\t\tct state new",
        "\t}",
        "}",
    ]


def test_the_owner_flag_is_set_and_persist_never_is() -> None:
    """I4: `owner,persist` survives its owner's death."""
    owned, kept = new_table(steering_table(PLAN))[0], new_table(keeper_table())[0]

    assert dict(attributes(owned.body))[2] == (2).to_bytes(4, "big")
    assert dict(attributes(kept.body))[2] == (2).to_bytes(4, "big")


def test_the_dry_run_needs_neither_privilege_nor_kernel() -> None:
    """DESIGN 9: --dry-run shows both tables."""
    shown = NftSteering(port=9443).dry_run()

    assert "table inet tidegate {\n\tflags owner\n" in shown
    assert "redirect to :9443" in shown
    assert "table inet tidegate_keeper {" in shown


def test_a_mark_is_read_and_written_back() -> None:
    """The configuration's form; a mark without a mask is matched whole."""
    assert str(ByMark.parse("0x74/0xff")) == "0x74/0xff"
    assert ByMark.parse("116") == ByMark(value=0x74, mask=0xFFFFFFFF)
    assert lines(steering_table(Plan(port=1, exemption=ByMark(value=0x74))), "steer")[2] == (
        "meta mark 0x00000074 return"
    )


@pytest.mark.parametrize(
    "text", ["", "mark", "0x174/0xff", "0x0/0xff", "0x74/0x0", "-1", "0x100000000", "1/2/3"]
)
def test_a_mark_that_could_never_match_is_refused(text: str) -> None:
    """It would exempt nothing, or everything."""
    with pytest.raises(ValueError):
        ByMark.parse(text)


@pytest.mark.parametrize(
    ("address", "special"),
    [
        ("127.0.0.74", True),
        ("127.74.0.1", False),  # the sinkhole, which is ours
        ("127.74.0.2", True),
        ("169.254.169.254", True),
        ("224.0.0.251", True),
        ("0.1.2.3", True),
        ("255.255.255.255", True),
        ("::", True),
        ("::1", True),
        ("fe80::1", True),
        ("ff02::fb", True),
        ("::ffff:192.0.2.1", True),
        ("192.0.2.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("fd00::1", False),
        ("2001:db8::1", False),
        ("64:ff9b::c000:201", False),
    ],
)
def test_addresses_that_name_this_host_or_link_are_never_learned(address: str, special: bool) -> None:
    """I5: private networks may hold registries, the metadata service never does."""
    assert is_special(ip_address(address)) is special


def test_learned_addresses_are_split_into_messages_that_fit() -> None:
    """I8: a netlink attribute ends at 64 KiB."""
    many = [(Endpoint.of(f"2001:db8::{number:x}", 443), 300.0) for number in range(3000)]
    messages = add_endpoints([*many, (Endpoint.of("192.0.2.1", 5000), 60.0)], known=False)

    assert len(messages) == 7
    assert all(len(message.body) < 65536 for message in messages)
    assert (
        bytes.fromhex("c0000201 1388 0000") in messages[0].body
    )  # address . port, each padded to four bytes


def test_a_renewal_deletes_between_two_additions() -> None:
    """N5: before Linux 6.12 adding an element again leaves its time-out as it was."""
    add, delete = 12, 14

    assert [message.kind for message in lease(3.0)] == [add, delete, add]
    assert [message.kind for message in lease(0)] == [add, delete]
    assert (3000).to_bytes(8, "big") in lease(3.0)[0].body
    known = add_endpoints([(Endpoint.of("192.0.2.1", 443), 1.0)], known=True)
    assert [message.kind for message in known] == [add, delete, add]


def test_attributes_are_read_back_and_a_broken_tail_is_ignored() -> None:
    """The kernel's answers are attributes; a short one ends the reading."""
    packed = text(1, "tidegate") + nest(2, u32(1, 7))

    assert attributes(packed) == [(1, b"tidegate\0"), (2, u32(1, 7))]
    assert attributes(packed + b"\x08\0") == attributes(packed)
    assert attributes(packed + b"\0\0\0\0rest") == attributes(packed)


@pytest.mark.parametrize(
    ("number", "owner", "expected"),
    [
        (errno.EPERM, NetlinkError(errno.EPERM, doing="looking"), "no right to change nft rules"),
        (errno.EPERM, 4_000_000_001, "owns table inet tidegate (netlink port 4000000001)"),
        (errno.EINVAL, NetlinkError(errno.ENOENT, doing="looking"), "does not know nft's owner flag"),
        (errno.EOPNOTSUPP, NetlinkError(errno.ENOENT, doing="looking"), "does not know nft's owner flag"),
    ],
)
def test_a_refused_table_is_explained(number: int, owner: int | NetlinkError, expected: str) -> None:
    """What the kernel says is a number; what the operator reads is a cause and what to type."""
    refusal = start_refusal(NetlinkError(number, doing="adding table inet tidegate with flags owner"), owner)

    assert expected in refusal.cause
    assert refusal.next_step


def test_a_refused_rule_is_named_with_what_to_load() -> None:
    """A kernel without nft_redir answers ENOENT to the first redirect."""
    error = NetlinkError(
        errno.ENOENT, doing="adding rule 'redirect to :8443' to chain steer", detail="no redir"
    )
    refusal = start_refusal(error, NetlinkError(errno.ENOENT, doing="looking"))

    assert "adding rule 'redirect to :8443' to chain steer: ENOENT" in refusal.cause
    assert "no redir" in refusal.cause
    assert "modprobe" in refusal.next_step


def test_connections_that_nobody_holds_and_that_have_something_to_say_are_counted(tmp_path: Path) -> None:
    """The keeper waits for those, not for listeners nor for what has been said."""
    (tmp_path / "thread-self/net").mkdir(parents=True)
    rows = [
        "0100007F:20FB 00000000:0000 0A",  # listening
        "0100007F:20FB 016433C6:9C40 01",  # established
        "0100007F:20FB 016433C6:9C41 04",  # FIN_WAIT1: our FIN is not acknowledged
        "0100007F:20FB 016433C6:9C42 05",  # FIN_WAIT2: the peer has it all
        "0100007F:20FB 016433C6:9C43 06",  # TIME_WAIT
        "0100007F:01BB 016433C6:20FB 01",  # somebody else's
    ]
    table = "  sl  local_address rem_address   st\n" + "".join(
        f"   {number}: {row} 00000000:00000000 00:00000000 00000000     0        0 {inode}\n"
        for inode in (0, 4711)
        for number, row in enumerate(rows)
    )
    (tmp_path / "thread-self/net/tcp").write_text(table)

    assert orphans(8443, proc=tmp_path) == 2
