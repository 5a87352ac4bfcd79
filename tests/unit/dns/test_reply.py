"""Answers that are made here: failures, and what another client was told."""

import pytest
from dnslib import CNAME, EDNS0, NS, QTYPE, RR, TXT, A, DNSRecord, EDNSOption

from tidegate_dns.policy import answers, lesson
from tidegate_dns.reply import refused, retold, servfail, udp_size

COOKIE = bytes(range(24))


def query(
    name: str = "registry.test",
    rrtype: str = "A",
    *,
    udp_len: int | None = None,
    flags: str = "",
    cookie: bytes | None = None,
) -> bytes:
    record = DNSRecord.question(name, rrtype)
    if udp_len is not None:
        options = [EDNSOption(3, b""), EDNSOption(10, cookie)] if cookie is not None else []
        record.add_ar(EDNS0(flags=flags, udp_len=udp_len, opts=options))
    return bytes(record.pack())


def answer(rrtype: str = "A", strings: int = 0) -> DNSRecord:
    """Every section filled, names compressed, EDNS with somebody's cookie."""
    reply = DNSRecord.parse(query(rrtype=rrtype)).reply()
    reply.add_answer(RR("registry.test", QTYPE.CNAME, rdata=CNAME("cdn.test"), ttl=50))
    reply.add_answer(RR("cdn.test", QTYPE.A, rdata=A("192.0.2.7"), ttl=30))
    for _ in range(strings):
        reply.add_answer(RR("cdn.test", QTYPE.TXT, rdata=TXT("x" * 200), ttl=9))
    reply.add_auth(RR("test", QTYPE.NS, rdata=NS("ns.test"), ttl=900))
    reply.add_ar(RR("ns.test", QTYPE.A, rdata=A("192.0.2.53"), ttl=900))
    reply.add_ar(EDNS0(udp_len=4096, opts=[EDNSOption(10, b"somebody else's")]))
    return reply


def retell(kept: DNSRecord, asked: bytes, *, over_udp: bool = True) -> bytes:
    packed = bytes(kept.pack())
    keepable = lesson(packed).keepable
    assert keepable is not None
    told = retold(packed, asked, additional_offset=keepable.additional_offset, over_udp=over_udp)
    assert told is not None
    return told


def test_an_answer_is_retold_to_who_asks_the_same_in_other_bytes() -> None:
    """C7: the asker's id and case, its CD and RD flags, the records, and nobody's OPT."""
    asker = DNSRecord.question("REGISTRY.test", "A")
    asker.header.rd = 0
    told = DNSRecord.parse(retell(answer(), bytes(asker.pack())))

    assert (told.header.id, str(told.q.qname), told.header.rd) == (asker.header.id, "REGISTRY.test.", 0)
    assert [str(r) for r in told.rr][1:] == [str(r) for r in answer().rr][1:]
    assert told.ar == [] and len(told.auth) == 1


def test_who_asks_with_edns_is_retold_with_edns_and_its_own_cookie() -> None:
    """N13, RFC 6891 section 7, RFC 7873 section 5.3: a client that has a server's cookie drops answers
    without one; one that has none yet expects none."""
    for cookie, told_cookie in ((COOKIE, [COOKIE]), (COOKIE[:8], []), (COOKIE + COOKIE, []), (None, [])):
        for flags, dnssec_ok in (("", 0), ("do", 1)):
            asked = query(udp_len=1400, cookie=cookie, flags=flags)
            told = DNSRecord.parse(retell(answer(), asked))
            (opt,) = told.ar
            assert (QTYPE[opt.rtype], opt.edns_len, opt.edns_do, opt.edns_ver) == ("OPT", 1232, dnssec_ok, 0)
            assert [(option.code, option.data) for option in opt.rdata] == [(10, c) for c in told_cookie]
            assert answers(asked, bytes(told.pack()))


@pytest.mark.parametrize("cut", range(1, 24))
def test_broken_options_are_nobodys_cookie(cut: int) -> None:
    """I8."""
    asked = query(udp_len=1400, cookie=COOKIE)
    length_at = len(asked) - 24 - 4 - 4 - 2  # of the record's data, before both options
    broken = asked[:length_at] + (32 - cut).to_bytes(2, "big") + asked[length_at + 2 : -cut]
    (opt,) = DNSRecord.parse(retell(answer(), broken)).ar

    assert opt.rdata == []


def test_what_is_too_large_for_the_asker_is_told_as_truncated_over_udp() -> None:
    """N13, RFC 6891 section 6.2.3, RFC 2181 section 9: it comes back over TCP for the whole."""
    kept = answer("TXT", strings=4)
    for asked in (query(rrtype="TXT"), query(rrtype="TXT", udp_len=900), query(rrtype="TXT", udp_len=100)):
        told = DNSRecord.parse(retell(kept, asked))
        assert (told.header.tc, told.rr, told.auth, str(told.q.qname)) == (1, [], [], "registry.test.")
        assert len(told.ar) == len(DNSRecord.parse(asked).ar)
    for asked, over_udp in ((query(rrtype="TXT"), False), (query(rrtype="TXT", udp_len=1232), True)):
        told = DNSRecord.parse(retell(kept, asked, over_udp=over_udp))
        assert (told.header.tc, len(told.rr)) == (0, 6)


def test_the_clients_buffer_has_512_octets_at_least() -> None:
    """RFC 1035 section 4.2.1, RFC 6891 section 6.2.3."""
    assert [udp_size(asked) for asked in (query(), query(udp_len=100), query(udp_len=4096), b"")] == [
        512,
        512,
        4096,
        512,
    ]


def test_failures_repeat_the_question_and_have_edns_where_it_was_asked_for() -> None:
    """N13: a stub that asked with EDNS and is answered without it takes its resolver for an old one."""
    for fail, rcode in ((servfail, 2), (refused, 5)):
        for asked in (query("REGISTRY.test"), query("REGISTRY.test", udp_len=1232, cookie=COOKIE)):
            told = DNSRecord.parse(fail(asked))
            assert (told.header.rcode, told.header.id, str(told.q.qname)) == (
                rcode,
                DNSRecord.parse(asked).header.id,
                "REGISTRY.test.",
            )
            assert len(told.ar) == len(DNSRecord.parse(asked).ar)
        assert fail(query()[:14])[4:] == bytes(8)
