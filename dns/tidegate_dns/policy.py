"""What to do with a query, and what an answer teaches: the pure core of the responder.

Queries are judged by bytes alone (RFC 1035 section 4), answers matched as RFC 5452 section 9.1 asks,
negative ones timed as RFC 2308 section 5 says. Nothing here raises, whatever the bytes; nothing here
keeps state, sends, or knows the time. Unsteered names are forwarded unread.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tidegate_dns.address import LearnedAddress
from tidegate_dns.message import (
    AA,
    AAAA,
    ANY,
    CD,
    DO,
    HEADER_LENGTH,
    IN,
    NOERROR,
    NXDOMAIN,
    OPCODE,
    OPT,
    QR,
    RA,
    RCODE,
    RD,
    REFUSED,
    SERVFAIL,
    SIG,
    SOA,
    TSIG,
    A,
    Message,
    Question,
    Record,
    parse_header,
    parse_message,
    parse_question,
)
from tidegate_dns.zone import Zone

PROBE_NAME = "probe.tidegate.internal"
PROBE_ADDRESS = IPv4Address("127.0.0.74")
"""Where the probe name leads, and the pseudo resolver that is asked for it."""

SINKHOLE_TTL_S = 1
"""Short, since an answer that outlives us leads nowhere."""

UDP_SIZE = 1232
"""What OPT records of ours announce: a datagram of that size is nowhere cut in pieces (DNS flag day 2020)."""

MAX_FRESH_S = 86_400
MAX_NEGATIVE_FRESH_S = 3_600

_QNAME = 0xC000 | HEADER_LENGTH
"""A pointer to the question's name (RFC 1035 section 4.1.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Send the query on, unchanged; `steered` is its question when the zone covers it."""

    steered: Question | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer with these bytes, without asking anybody."""

    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Say nothing: these bytes are not a query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepable:
    """How an answer may be kept: fresh for so long (0: only for stale), and where its TTLs are."""

    fresh_s: int
    ttls: tuple[tuple[int, int], ...]
    """(offset, ttl) of every record but OPT, whose TTL field is none."""
    question_end: int
    additional_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the answer to a steered name teaches."""

    addresses: tuple[LearnedAddress, ...]
    keepable: Keepable | None
    lookup_failed: bool
    """The resolver is there but could not look the name up (SERVFAIL, REFUSED): RFC 8767 section 4."""


NOTHING_LEARNED = Lesson(addresses=(), keepable=None, lookup_failed=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionKey:
    """What two queries share when one's answer can be told to the other, if only while it is stale."""

    question: Question
    dnssec_ok: bool
    checking_disabled: bool


def decide(query: bytes, zone: Zone) -> Forward | Answer | Refuse:
    """What to do with a datagram or TCP message that a client sent to its resolver."""
    header = parse_header(query)
    if header is None or header.is_response:
        # A response sent to a resolver is never answered, else two of us could talk forever.
        return Refuse()
    read = parse_question(query)
    if read is None or header.opcode != 0:
        return Forward(steered=None)
    question, _ = read
    if question.qname == PROBE_NAME:
        return Answer(message=_own_answer(query, question, PROBE_ADDRESS, ttl_s=0))
    if question.qclass not in (IN, ANY):
        return Forward(steered=None)
    sinkhole = zone.sinkhole(question.qname)
    if sinkhole is not None:
        return Answer(message=_own_answer(query, question, sinkhole, ttl_s=SINKHOLE_TTL_S))
    return Forward(steered=question if zone.covers(question.qname) else None)


def answers(query: bytes, answer: bytes) -> bool:
    """Whether `answer` is one to `query`, the ids included; its sender is checked by the socket."""
    asked, told = parse_header(query), parse_header(answer)
    if asked is None or told is None or not told.is_response:
        return False
    if told.id != asked.id or told.opcode != asked.opcode:
        return False
    if told.questions == 0 or asked.questions != 1:
        # Old servers answer what they cannot read with a bare header: it carries no data, and without
        # it the client would wait where it was told before. A question of RFC 7873 section 5.4 has none.
        return told.answers == 0 and (told.rcode != NOERROR or asked.questions == 0)
    asked_question, told_question = parse_question(query), parse_question(answer)
    if asked_question is None:
        return told.answers == 0 and told.rcode != NOERROR
    return told_question is not None and told_question[0] == asked_question[0]


def lesson(answer: bytes) -> Lesson:
    """The addresses of the whole answer section, CNAME chains included, and how to keep the answer."""
    message = parse_message(answer)
    if message is None or message.question is None:
        return NOTHING_LEARNED
    header = message.header
    return Lesson(
        addresses=_addresses(answer, message),
        keepable=_keepable(answer, message) if not header.is_truncated else None,
        lookup_failed=header.rcode in (SERVFAIL, REFUSED),
    )


def question_key(query: bytes, question: Question) -> QuestionKey:
    """By what a stale answer is found for a query that differs in EDNS options, cookies or case."""
    message = parse_message(query)
    opt = message.opt() if message else None
    return QuestionKey(
        question=question,
        dnssec_ok=bool(opt and opt.ttl & DO),
        checking_disabled=bool(message and message.header.flags & CD),
    )


def retold(answer: bytes, keepable: Keepable, query: bytes, *, over_udp: bool) -> bytes | None:
    """An answer told to another query with the same question key; None when it would not fit.

    The client's own question is put back, so its case stays; the additional section goes, since its
    OPT belongs to the other client.
    """
    read = parse_question(query)
    if read is None or read[1] != keepable.question_end or len(answer) < keepable.additional_offset:
        return None
    body = answer[read[1] : keepable.additional_offset]
    if over_udp and read[1] + len(body) > _udp_size(query):
        return None
    flags = int.from_bytes(answer[2:4], "big") & (QR | OPCODE | RA | RCODE)
    flags |= int.from_bytes(query[2:4], "big") & (RD | CD)
    counts = answer[4:10] + b"\0\0"
    return query[:2] + flags.to_bytes(2, "big") + counts + query[HEADER_LENGTH : read[1]] + body


def servfail(query: bytes) -> bytes:
    """A SERVFAIL to `query`, its question kept when it can be read."""
    return _reply(query, SERVFAIL)


def refused(query: bytes) -> bytes:
    """A REFUSED to `query`, its question kept when it can be read."""
    return _reply(query, REFUSED)


def _reply(
    query: bytes, rcode: int, *, answer: bytes = b"", authority: bytes = b"", authoritative: bool = False
) -> bytes:
    """An answer of our own, with at most one record in each section, and EDNS where the query has it."""
    read = parse_question(query)
    question = query[HEADER_LENGTH : read[1]] if read else b""
    opt = _own_opt(query)
    flags = int.from_bytes(query[2:4], "big") & (OPCODE | RD | CD)
    flags |= QR | RA | rcode | (AA if authoritative else 0)
    counts = struct.pack(">HHHH", bool(question), bool(answer), bool(authority), bool(opt))
    return query[:2] + flags.to_bytes(2, "big") + counts + question + answer + authority + opt


def _own_opt(query: bytes) -> bytes:
    """An OPT record of ours for a query that has one (RFC 6891 section 7), with its DO bit (RFC 3225)."""
    message = parse_message(query)
    opt = message.opt() if message else None
    return b"" if opt is None else struct.pack(">BHHIH", 0, OPT, UDP_SIZE, opt.ttl & DO, 0)


def _own_answer(query: bytes, question: Question, address: IPv4Address, *, ttl_s: int) -> bytes:
    """The address for type A (and ANY, RFC 8482), NODATA for every other type.

    NODATA comes with a SOA (RFC 2308 section 3), so that clients know how briefly they may keep it. HTTPS and
    SVCB are among the others: no address hint or ECH of elsewhere leads past us.
    """
    if question.qtype in (A, ANY) and question.qclass in (IN, ANY):
        record = struct.pack(">HHHIH", _QNAME, A, IN, ttl_s, 4) + address.packed
        return _reply(query, NOERROR, answer=record, authoritative=True)
    data = (
        struct.pack(">H", _QNAME) + b"\6nobody\7invalid\0" + struct.pack(">5I", 1, 3600, 1200, 604800, ttl_s)
    )
    record = struct.pack(">HHHIH", _QNAME, SOA, IN, ttl_s, len(data)) + data
    return _reply(query, NOERROR, authority=record, authoritative=True)


def _addresses(answer: bytes, message: Message) -> tuple[LearnedAddress, ...]:
    found: dict[IPv4Address | IPv6Address, int] = {}
    for record in message.records:
        if record.section != "answer" or record.rclass != IN:
            continue
        data = answer[record.data_offset : record.data_offset + record.data_length]
        address: IPv4Address | IPv6Address
        if record.type == A and len(data) == 4:
            address = IPv4Address(data)
        elif record.type == AAAA and len(data) == 16:
            address = IPv6Address(data)
        else:
            continue
        found[address] = max(record.ttl, found.get(address, 0))
    return tuple(LearnedAddress(address, ttl) for address, ttl in found.items())


def _keepable(answer: bytes, message: Message) -> Keepable | None:
    if message.header.rcode not in (NOERROR, NXDOMAIN):
        return None
    records = message.records
    if any(record.type in (TSIG, SIG) for record in records):
        return None  # signed for one transaction (RFC 8945, RFC 2931): it is nobody else's answer
    told = [record.ttl for record in records if record.section == "answer"]
    negative = message.header.rcode == NXDOMAIN or not _has_type(message)
    fresh_s = min([*told, MAX_FRESH_S])
    if negative:
        fresh_s = min(fresh_s, _negative_ttl(answer, records), MAX_NEGATIVE_FRESH_S)
    return Keepable(
        fresh_s=fresh_s,
        ttls=tuple((record.ttl_offset, record.ttl) for record in records if record.type != OPT),
        question_end=message.question_end,
        additional_offset=message.additional_offset,
    )


def _has_type(message: Message) -> bool:
    asked = message.question.qtype if message.question else 0
    any_type = 255
    return any(
        record.section == "answer" and (record.type == asked or asked == any_type)
        for record in message.records
    )


def _negative_ttl(answer: bytes, records: Sequence[Record]) -> int:
    """RFC 2308 section 5: the lesser of the SOA's own TTL and its MINIMUM; 0 without a SOA."""
    for record in records:
        if record.section == "authority" and record.type == SOA and record.data_length >= 22:
            end = record.data_offset + record.data_length
            return min(record.ttl, int.from_bytes(answer[end - 4 : end], "big"))
    return 0


def _udp_size(query: bytes) -> int:
    """The largest answer the client takes over UDP (RFC 6891 section 6.2.3)."""
    message = parse_message(query)
    opt = message.opt() if message else None
    return max(512, opt.rclass) if opt else 512
