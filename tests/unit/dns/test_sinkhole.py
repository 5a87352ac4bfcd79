"""Sinkholes: names that are answered with an address of this host, without asking a resolver."""

from ipaddress import IPv4Address

import pytest
from dnslib import EDNS0, QTYPE, DNSRecord

from tidegate_dns.policy import Answer, Forward, answers, decide, lesson
from tidegate_dns.zone import Zone

HERE, THERE = IPv4Address("127.74.0.1"), IPv4Address("127.74.0.2")
ZONE = Zone.of(
    ["learned.test", "a.wild.test", "*.wild.test"],
    {"registry.test": HERE, "*.wild.test": THERE, "*.Sub.test": HERE},
)


def query(name: str, rrtype: str = "A", *, edns_flags: str | None = None) -> bytes:
    record = DNSRecord.question(name, rrtype)
    if edns_flags is not None:
        record.add_ar(EDNS0(flags=edns_flags, udp_len=4096))
    return bytes(record.pack())


def told(asked: bytes) -> DNSRecord:
    decision = decide(asked, ZONE)
    assert isinstance(decision, Answer)
    assert answers(asked, decision.message)
    return DNSRecord.parse(decision.message)


@pytest.mark.parametrize(
    ("name", "address"), [("Registry.TEST", HERE), ("b.wild.test", THERE), ("c.sub.test", HERE)]
)
def test_a_sinkhole_is_told_for_a_second(name: str, address: IPv4Address) -> None:
    """N11: no resolver is asked; what is told must not outlive us for long."""
    for rrtype in ("A", "ANY"):
        answer = told(query(name, rrtype))
        assert [(str(r.rname), QTYPE[r.rtype], str(r.rdata), r.ttl) for r in answer.rr] == [
            (f"{name}.", "A", str(address), 1)
        ]
        assert (answer.header.rcode, answer.header.aa, answer.auth) == (0, 1, [])


@pytest.mark.parametrize("rrtype", ["AAAA", "HTTPS", "TXT", "MX", "SRV", "NS", "TYPE64", "TYPE65280"])
def test_other_types_have_no_data_for_a_second(rrtype: str) -> None:
    """N11, RFC 2308: with a SOA, or clients would ask again at once or keep it for as long as they like."""
    asked = query("registry.test", rrtype if rrtype in QTYPE.reverse else "A")
    if rrtype.startswith("TYPE"):
        asked = asked[:-4] + int(rrtype[4:]).to_bytes(2, "big") + asked[-2:]
    answer = told(asked)
    (soa,) = answer.auth

    assert (answer.header.rcode, answer.rr) == (0, [])
    assert (str(soa.rname), QTYPE[soa.rtype], soa.ttl) == ("registry.test.", "SOA", 1)
    assert str(soa.rdata) == "registry.test. nobody.invalid. 1 3600 1200 604800 1"
    keepable = lesson(answer.pack()).keepable
    assert keepable is not None and keepable.fresh_s == 1


def test_who_asks_with_edns_is_answered_with_edns() -> None:
    """RFC 6891 section 7: systemd-resolved would think less of its resolver otherwise."""
    for edns_flags, dnssec_ok in (("", 0), ("do", 1)):
        for rrtype in ("A", "AAAA"):
            (opt,) = told(query("registry.test", rrtype, edns_flags=edns_flags)).ar
            assert (QTYPE[opt.rtype], opt.edns_len, opt.edns_do, opt.edns_rcode, opt.edns_ver) == (
                "OPT",
                1232,
                dnssec_ok,
                0,
                0,
            )
    assert told(query("registry.test")).ar == []


def test_other_names_of_the_zone_are_learned() -> None:
    """N11: the mode is each registry's own; an exact name goes before the wildcard that covers it."""
    for name in ("learned.test", "a.wild.test"):
        decision = decide(query(name), ZONE)
        assert isinstance(decision, Forward) and decision.steered is not None
    for name in ("wild.test", "a.b.wild.test", "other.test"):
        assert decide(query(name), ZONE) == Forward(steered=None)


def test_a_sinkhole_is_for_class_in() -> None:
    """RFC 1035 section 3.2.4: other classes have other names."""
    asked = query("registry.test")
    assert decide(asked[:-1] + b"\3", ZONE) == Forward(steered=None)
    assert isinstance(decide(asked[:-1] + b"\xff", ZONE), Answer)


def test_sinkholes_are_names_of_the_zone() -> None:
    """N11: the kernel's rules are made of them, too."""
    assert ZONE.exact_names == {"learned.test", "a.wild.test", "registry.test"}
    assert ZONE.wildcard_parents == {"wild.test", "sub.test"}
    assert hash(ZONE) == hash(Zone.of([*ZONE.sinkholes, "learned.test", "a.wild.test"], {}))
