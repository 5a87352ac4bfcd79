"""The pure core: what to do with a query, and what an answer teaches."""

import struct
from ipaddress import ip_address

import pytest
from dnslib import AAAA, CNAME, EDNS0, HTTPS, MX, NS, QTYPE, RR, SOA, TXT, A, DNSRecord

from tidegate_dns.address import LearnedAddress
from tidegate_dns.message import Question, parse_message
from tidegate_dns.policy import (
    PROBE_NAME,
    Answer,
    Forward,
    Refuse,
    answers,
    decide,
    lesson,
    question_key,
)
from tidegate_dns.reply import servfail
from tidegate_dns.zone import Zone

ZONE = Zone.of(["registry.test", "*.wild.test"])


def query(name: str = "registry.test", rrtype: str = "A", *, edns: bool = False, flags: str = "") -> bytes:
    record = DNSRecord.question(name, rrtype)
    record.header.id = 0x1234
    if edns:
        record.add_ar(EDNS0(flags=flags, udp_len=1232))
    return bytes(record.pack())


def rich_answer() -> DNSRecord:
    """Every section filled, names compressed, EDNS, types known and not."""
    reply = DNSRecord.parse(query()).reply()
    reply.add_answer(RR("registry.test", QTYPE.CNAME, rdata=CNAME("cdn.test"), ttl=50))
    reply.add_answer(RR("cdn.test", QTYPE.CNAME, rdata=CNAME("edge.cdn.test"), ttl=40))
    reply.add_answer(RR("edge.cdn.test", QTYPE.A, rdata=A("192.0.2.7"), ttl=30))
    reply.add_answer(RR("edge.cdn.test", QTYPE.A, rdata=A("192.0.2.8"), ttl=20))
    reply.add_answer(RR("edge.cdn.test", QTYPE.AAAA, rdata=AAAA("2001:db8::7"), ttl=10))
    reply.add_answer(RR("cdn.test", QTYPE.MX, rdata=MX("mx.cdn.test"), ttl=60))
    reply.add_answer(RR("cdn.test", QTYPE.TXT, rdata=TXT("any"), ttl=60))
    reply.add_auth(RR("test", QTYPE.NS, rdata=NS("ns.test"), ttl=900))
    reply.add_ar(RR("ns.test", QTYPE.A, rdata=A("192.0.2.53"), ttl=900))
    reply.add_ar(EDNS0(udp_len=1232))
    return reply


def negative(*, ttl: int, minimum: int, rcode: int = 0) -> bytes:
    reply = DNSRecord.parse(query()).reply()
    reply.header.rcode = rcode
    reply.add_auth(RR("test", QTYPE.SOA, rdata=SOA("ns.test", "h.test", (1, 2, 3, 4, minimum)), ttl=ttl))
    return bytes(reply.pack())


def test_a_steered_name_is_forwarded_as_such_in_any_case() -> None:
    """N2."""
    assert decide(query("Registry.TEST"), ZONE) == Forward(
        steered=Question(qname="registry.test", qtype=1, qclass=1)
    )
    assert decide(query("x.wild.test", "TXT"), ZONE) != Forward(steered=None)


@pytest.mark.parametrize(
    "message",
    [
        query("other.test"),
        query("a.registry.test"),
        query()[:4] + b"\0\2" + query()[6:],
        query()[:4] + b"\0\0" + query()[6:],
        query()[:2] + b"\x28\0" + query()[4:],
        query()[:-1],
        query()[:12] + b"\xc0\x0c\0\1\0\1",
        query()[:12] + b"\x40" + b"x" * 64 + b"\4wild\4test\0\0\1\0\1",
        query()[:12],
        query()[:-1] + b"\3",
        query(rrtype="AXFR"),
        query(rrtype="IXFR"),
        query() + bytes(4096),
    ],
    ids=[
        "other",
        "deeper",
        "two questions",
        "none",
        "UPDATE",
        "cut",
        "pointer",
        "long label",
        "header only",
        "class CH",
        "AXFR",
        "IXFR",
        "longer than any look-up",
    ],
)
def test_what_is_not_one_query_for_a_steered_name_is_forwarded_unread(message: bytes) -> None:
    """N13, I8: what it means is the resolver's business. A transfer is many messages (RFC 5936), none of
    which is an answer that could be told again."""
    assert decide(message, ZONE) == Forward(steered=None)


@pytest.mark.parametrize("rrtype", ["A", "AAAA", "ANY", "HTTPS", "TXT", "MX", "SOA", "DNSKEY"])
def test_every_other_type_of_a_steered_name_is_steered(rrtype: str) -> None:
    """N2, N13: its answer may have addresses, and is kept for when the resolver is dark."""
    for qclass in (1, 255):
        asked = query(rrtype=rrtype)[:-1] + bytes([qclass])
        question = Question(qname="registry.test", qtype=QTYPE.reverse[rrtype], qclass=qclass)
        assert decide(asked, ZONE) == Forward(steered=question)


@pytest.mark.parametrize("message", [b"", bytes(11), query()[:2] + b"\x81\x80" + query()[4:]])
def test_what_is_no_query_is_refused(message: bytes) -> None:
    """I8: two of us must never talk to each other forever."""
    assert decide(message, ZONE) == Refuse()


def test_the_probe_is_answered_for_type_a_and_nodata_for_others() -> None:
    """I3."""
    told = decide(query(PROBE_NAME), ZONE)
    assert isinstance(told, Answer)
    assert answers(query(PROBE_NAME), query(PROBE_NAME)[:2] + told.message[2:])
    parsed = DNSRecord.parse(told.message)
    assert [(str(r.rname), str(r.rdata), r.ttl) for r in parsed.rr] == [(f"{PROBE_NAME}.", "127.0.0.74", 0)]

    told = decide(query(PROBE_NAME, "AAAA"), ZONE)
    assert isinstance(told, Answer)
    assert (DNSRecord.parse(told.message).header.rcode, DNSRecord.parse(told.message).rr) == (0, [])


def test_the_reader_agrees_with_dnslib_about_every_record() -> None:
    """N13: the same types, sections and TTLs, and TTLs where they really are."""
    packed = bytes(rich_answer().pack())
    message = parse_message(packed)
    assert message is not None
    theirs = DNSRecord.parse(packed)

    assert [(r.section, r.type, r.ttl) for r in message.records if r.type != 41] == [
        *(("answer", r.rtype, r.ttl) for r in theirs.rr),
        *(("authority", r.rtype, r.ttl) for r in theirs.auth),
        *(("additional", r.rtype, r.ttl) for r in theirs.ar if r.rtype != 41),
    ]
    for record in message.records:
        if record.type != 41:
            assert struct.unpack_from(">I", packed, record.ttl_offset)[0] == record.ttl
    assert message.records[-1].data_offset + message.records[-1].data_length == len(packed)


def test_all_addresses_of_the_answer_section_are_learned_and_no_others() -> None:
    """N2: CNAME chains included; glue is not an answer."""
    told = lesson(bytes(rich_answer().pack()))

    assert told.addresses == (
        LearnedAddress(ip_address("192.0.2.7"), 30),
        LearnedAddress(ip_address("192.0.2.8"), 20),
        LearnedAddress(ip_address("2001:db8::7"), 10),
    )
    assert told.keepable is not None and told.keepable.fresh_s == 10


def test_a_negative_answer_is_fresh_for_the_lesser_of_soa_ttl_and_minimum() -> None:
    """N13, RFC 2308 section 5."""
    for ttl, minimum, fresh_s in ((900, 60, 60), (30, 60, 30), (0, 60, 0), (1 << 30, 1 << 30, 3600)):
        for rcode in (0, 3):
            keepable = lesson(negative(ttl=ttl, minimum=minimum, rcode=rcode)).keepable
            assert keepable is not None and keepable.fresh_s == fresh_s
    without_soa = lesson(servfail(query())[:3] + b"\x80" + servfail(query())[4:]).keepable
    assert without_soa is not None and without_soa.fresh_s == 0


def test_a_negative_answers_soa_is_told_with_what_is_left_of_its_minimum() -> None:
    """N13, RFC 2308 section 5: a cache behind ours must not keep the answer longer than we may."""
    for ttl, minimum, told in ((900, 60, 60), (30, 60, 30), (1 << 30, 1 << 30, 1 << 30)):
        for rcode in (0, 3):
            keepable = lesson(negative(ttl=ttl, minimum=minimum, rcode=rcode)).keepable
            assert keepable is not None and [ttl for _, ttl in keepable.ttls] == [told]
    alias = DNSRecord.parse(negative(ttl=900, minimum=60, rcode=3))
    alias.add_answer(RR("registry.test", QTYPE.CNAME, rdata=CNAME("gone.test"), ttl=20))
    keepable = lesson(bytes(alias.pack())).keepable
    assert keepable is not None and [ttl for _, ttl in keepable.ttls] == [20, 60]
    assert keepable.fresh_s == 20


def test_hints_of_service_bindings_are_learned_and_nothing_else_of_them() -> None:
    """N2, N12, RFC 9460: a client may connect to a hint before it has an address record."""
    reply = DNSRecord.parse(query(rrtype="HTTPS")).reply()
    parameters = [
        (1, b"\x02h2"),
        (4, ip_address("192.0.2.7").packed + ip_address("192.0.2.8").packed),
        (5, b"\0\x08ech=ech="),
        (6, ip_address("2001:db8::7").packed),
    ]
    reply.add_answer(RR("registry.test", QTYPE.HTTPS, rdata=HTTPS(1, [b"cdn", b"test"], parameters), ttl=70))
    packed = bytes(reply.pack())

    assert lesson(packed).addresses == tuple(
        LearnedAddress(ip_address(each), 70) for each in ("192.0.2.7", "192.0.2.8", "2001:db8::7")
    )


def test_a_ttl_beyond_31_bits_is_zero_and_a_week_is_a_day() -> None:
    """RFC 2181 section 8; I8."""
    for ttl, fresh_s in ((0x80000000, 0), (0xFFFFFFFF, 0), (7 * 86400, 86400)):
        reply = DNSRecord.parse(query()).reply()
        reply.add_answer(RR("registry.test", QTYPE.A, rdata=A("192.0.2.7"), ttl=ttl))
        keepable = lesson(bytes(reply.pack())).keepable
        assert keepable is not None and keepable.fresh_s == fresh_s


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 9])
def test_failures_and_truncated_answers_are_never_kept(rcode: int) -> None:
    """N13: a failure is not knowledge."""
    packed = bytes(rich_answer().pack())

    assert lesson(packed[:3] + bytes([0x80 | rcode]) + packed[4:]).keepable is None
    assert lesson(packed[:2] + bytes([packed[2] | 2]) + packed[3:]).keepable is None
    for failure in (packed, packed[:-1], packed[:12], packed[:4] + bytes(8)):
        told = lesson(failure[:3] + bytes([0x80 | rcode]) + failure[4:])
        assert told.lookup_failed == (rcode in (2, 5))


def test_an_answer_signed_for_one_transaction_is_never_kept() -> None:
    """RFC 8945: a TSIG is for one id, one time and one client."""
    signed = DNSRecord.parse(query()).reply()
    signed.add_answer(RR("registry.test", QTYPE.A, rdata=A("192.0.2.7"), ttl=300))
    packed = bytearray(signed.pack())
    packed[11] = 1
    packed += b"\3key\0" + struct.pack(">HHIH", 250, 255, 0, 4) + b"sign"

    assert lesson(bytes(packed)).addresses and lesson(bytes(packed)).keepable is None


ASKED = query()


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        (servfail(ASKED), True),
        (ASKED[:2] + servfail(query("REGISTRY.test"))[2:], True),
        (bytes([ASKED[0] ^ 1]) + servfail(ASKED)[1:], False),
        (ASKED, False),
        (ASKED[:2] + servfail(query("other.test"))[2:], False),
        (ASKED[:2] + servfail(query(rrtype="AAAA"))[2:], False),
        (servfail(ASKED)[:-1] + b"\3", False),
        (servfail(ASKED)[:2] + b"\xa8" + servfail(ASKED)[3:], False),
        (ASKED[:2] + b"\x80\x01" + bytes(8), True),
        (ASKED[:2] + b"\x80\x00" + bytes(8), False),
        (ASKED[:2] + b"\x80\x01\0\0\0\1\0\0\0\0", False),
        (servfail(ASKED)[:11], False),
    ],
    ids=[
        "true",
        "other case",
        "id",
        "a query",
        "name",
        "type",
        "class",
        "opcode",
        "bare FORMERR",
        "bare NOERROR",
        "bare with answer",
        "cut",
    ],
)
def test_an_answer_is_taken_only_when_id_opcode_and_question_match(told: bytes, taken: bool) -> None:
    """N13, RFC 5452 section 9.1."""
    assert answers(ASKED, told) is taken


UPDATE = query()[:2] + b"\x28\0" + query()[4:]
TWO = query()[:4] + b"\0\2" + query()[6:] + query("other.test")[12:]
POINTED = query()[:12] + b"\1a\xc0\x12\0\1\0\1" + b"\4test\0"
COOKIE_ONLY = query()[:4] + bytes(6) + b"\0\1" + b"\0\0\x29\4\xd0" + bytes(4) + b"\0\x0c\0\x0a\0\x08tidegate"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (UPDATE, UPDATE[:2] + b"\xa8\0" + bytes(8)),
        (UPDATE, UPDATE[:2] + b"\xa8\5" + UPDATE[4:]),
        (TWO, TWO[:2] + b"\x81\x80" + TWO[4:6] + b"\0\1" + TWO[8:] + b"\xc0\x0c\0\1\0\1" + bytes(10)),
        (POINTED, POINTED[:2] + b"\x81\x80" + POINTED[4:6] + b"\0\1" + POINTED[8:20]),
        (COOKIE_ONLY, COOKIE_ONLY[:2] + b"\x81\x80" + COOKIE_ONLY[4:]),
    ],
    ids=["UPDATE, bare", "UPDATE, REFUSED", "two questions", "a pointer in the question", "no question"],
)
def test_an_answer_to_what_is_no_plain_question_is_taken_by_its_id(asked: bytes, told: bytes) -> None:
    """N13: whoever asks so has its own way to tell; without us it would get the answer."""
    assert answers(asked, told)
    assert not answers(asked, bytes([told[0] ^ 1]) + told[1:])
    assert not answers(asked, told[:2] + bytes([told[2] ^ 0x80]) + told[3:])
    assert not answers(asked, told[:2] + bytes([told[2] ^ 0x10]) + told[3:])


def test_dnssec_tells_questions_apart_and_cookies_do_not() -> None:
    """N13."""
    question = Question(qname="registry.test", qtype=1, qclass=1)

    assert question_key(query(), question) == question_key(query(edns=True), question)
    assert question_key(query(), question) != question_key(query(edns=True, flags="do"), question)
    assert question_key(query(), question) != question_key(query()[:3] + b"\x10" + query()[4:], question)
