"""What to do with a query, and what an answer teaches: the pure core of the responder.

Queries are judged by bytes alone (RFC 1035 section 4), answers matched as RFC 5452 section 9.1 asks,
negative ones timed as RFC 2308 section 5 says. Nothing here raises, whatever the bytes; nothing here
keeps state, sends, or knows the time. Unsteered names are forwarded unread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tidegate_dns.address import LearnedAddress
from tidegate_dns.message import (
    AAAA,
    ANY,
    AXFR,
    CD,
    DO,
    IN,
    IXFR,
    NOERROR,
    NXDOMAIN,
    OPT,
    QUERY,
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
from tidegate_dns.reply import address_of_ours
from tidegate_dns.svcb import HTTPS, SVCB, hints
from tidegate_dns.zone import Zone

PROBE_NAME = "probe.tidegate.internal"
PROBE_ADDRESS = IPv4Address("127.0.0.74")
"""Where the probe name leads, and the pseudo resolver that is asked for it."""

SINKHOLE_TTL_S = 1
"""Short, since an answer that outlives us leads nowhere."""

MAX_STUDIED_QUERY = 4096
"""A longer query is forwarded unread, so that what is remembered of queries is small; look-ups have some
fifty octets, and 128 or 256 where they are padded (RFC 8467)."""

MAX_FRESH_S = 86_400
MAX_NEGATIVE_FRESH_S = 3_600


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
    """(offset, ttl) of every record but OPT, whose TTL field is none; a negative answer's SOA has the lesser
    of its TTL and its minimum."""
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
    if read is None or header.opcode != QUERY:
        return Forward(steered=None)
    question, _ = read
    if question.qclass not in (IN, ANY):
        return Forward(steered=None)
    if question.qname == PROBE_NAME:
        return Answer(message=address_of_ours(query, question, PROBE_ADDRESS, ttl_s=0))
    sinkhole = zone.sinkhole(question.qname)
    if sinkhole is not None:
        return Answer(message=address_of_ours(query, question, sinkhole, ttl_s=SINKHOLE_TTL_S))
    if question.qtype in (AXFR, IXFR) or len(query) > MAX_STUDIED_QUERY:
        return Forward(steered=None)
    return Forward(steered=question if zone.covers(question.qname) else None)


def answers(query: bytes, answer: bytes) -> bool:
    """Whether `answer` is one to `query`, the ids included; its sender is checked by the socket.

    A question that cannot be read here, or several, cannot be compared: then the id has to do, as for the
    client itself. Nothing is learned or kept of those.
    """
    asked, told = parse_header(query), parse_header(answer)
    if asked is None or told is None or not told.is_response:
        return False
    if told.id != asked.id or told.opcode != asked.opcode:
        return False
    asked_question = parse_question(query)
    if asked_question is None:
        return True
    if told.questions == 0:
        # Old servers answer what they cannot read with a bare header, and any may do so for an UPDATE (RFC
        # 2136 section 3.8): it carries no data, and without it the client would wait where it was told.
        return told.answers == 0 and (told.rcode != NOERROR or told.opcode != QUERY)
    told_question = parse_question(answer)
    return told_question is not None and told_question[0] == asked_question[0]


def lesson(answer: bytes) -> Lesson:
    """The addresses of the whole answer section, CNAME chains included, and how to keep the answer."""
    header = parse_header(answer)
    if header is None:
        return NOTHING_LEARNED
    lookup_failed = header.rcode in (SERVFAIL, REFUSED)
    message = parse_message(answer)
    if message is None or message.question is None:
        return Lesson(addresses=(), keepable=None, lookup_failed=lookup_failed)
    return Lesson(
        addresses=_addresses(answer, message),
        keepable=_keepable(answer, message) if not header.is_truncated else None,
        lookup_failed=lookup_failed,
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


def _addresses(answer: bytes, message: Message) -> tuple[LearnedAddress, ...]:
    found: dict[IPv4Address | IPv6Address, int] = {}
    for record in message.records:
        if record.section != "answer" or record.rclass != IN:
            continue
        for address in _addresses_of(record, answer[record.data_offset : record.data_end]):
            found[address] = max(record.ttl, found.get(address, 0))
    return tuple(LearnedAddress(address, ttl) for address, ttl in found.items())


def _addresses_of(record: Record, data: bytes) -> Sequence[IPv4Address | IPv6Address]:
    if record.type == A and len(data) == 4:
        return (IPv4Address(data),)
    if record.type == AAAA and len(data) == 16:
        return (IPv6Address(data),)
    if record.type in (HTTPS, SVCB):
        return hints(data)
    return ()


def _keepable(answer: bytes, message: Message) -> Keepable | None:
    if message.header.rcode not in (NOERROR, NXDOMAIN):
        return None
    records = message.records
    if any(record.type in (TSIG, SIG) for record in records):
        return None  # signed for one transaction (RFC 8945, RFC 2931): it is nobody else's answer
    ttls = [(record.ttl_offset, record.ttl) for record in records if record.type != OPT]
    fresh_s = min([MAX_FRESH_S, *(record.ttl for record in records if record.section == "answer")])
    if message.header.rcode == NXDOMAIN or not _has_type(message):
        soa = next((r for r in records if r.section == "authority" and r.type == SOA), None)
        negative_ttl = min(soa.ttl, _minimum(answer, soa)) if soa else 0
        fresh_s = min(fresh_s, negative_ttl, MAX_NEGATIVE_FRESH_S)
        # The SOA's TTL says how much longer, to whoever keeps our replay (RFC 2308 sections 5 and 6).
        ttls = [(at, negative_ttl if soa and at == soa.ttl_offset else ttl) for at, ttl in ttls]
    return Keepable(fresh_s=fresh_s, ttls=tuple(ttls), additional_offset=message.additional_offset)


def _has_type(message: Message) -> bool:
    asked = message.question.qtype if message.question else 0
    return any(
        record.section == "answer" and (record.type == asked or asked == ANY) for record in message.records
    )


def _minimum(answer: bytes, soa: Record) -> int:
    """The SOA's last field (RFC 1035 section 3.3.13); 0 when there is no room for it."""
    return int.from_bytes(answer[soa.data_end - 4 : soa.data_end], "big") if soa.data_length >= 22 else 0
