"""Answers made here: failures, an address of this host, and a resolver's answer told to another client.

RFC 1035 section 4, with EDNS (RFC 6891) where the query has it, and the client's cookie (RFC 7873), since
a client that has been given one drops answers without it. Pure; what to answer is decided elsewhere. A
resolver's answer to the client that asked for it never passes here: it stays the bytes it was.
"""

import struct
from ipaddress import IPv4Address

from tidegate_dns.message import (
    AA,
    ANY,
    CD,
    DO,
    HEADER_LENGTH,
    IN,
    NOERROR,
    OPCODE,
    OPT,
    QR,
    RA,
    RCODE,
    RD,
    REFUSED,
    SERVFAIL,
    SOA,
    TC,
    A,
    Question,
    parse_message,
    parse_question,
)

UDP_SIZE = 1232
"""What OPT records of ours announce: a datagram of that size is nowhere cut in pieces (DNS flag day 2020)."""

_QNAME = 0xC000 | HEADER_LENGTH
"""A pointer to the question's name (RFC 1035 section 4.1.4)."""

_OPTION = struct.Struct(">HH")
_COOKIE = 10
_FULL_COOKIE = range(16, 41)
"""Octets of a client's cookie and a server's; the client's alone has eight, and expects nothing yet."""


def servfail(query: bytes) -> bytes:
    """A SERVFAIL to `query`, its question kept when it can be read."""
    return _own(query, SERVFAIL)


def refused(query: bytes) -> bytes:
    """A REFUSED to `query`, its question kept when it can be read."""
    return _own(query, REFUSED)


def address_of_ours(query: bytes, question: Question, address: IPv4Address, *, ttl_s: int) -> bytes:
    """The address for type A (and ANY, RFC 8482), NODATA for every other type.

    NODATA comes with a SOA (RFC 2308 section 3), so that clients know how briefly they may keep it. HTTPS and
    SVCB are among the others: no address hint or ECH of elsewhere leads past us.
    """
    if question.qtype in (A, ANY):
        record = struct.pack(">HHHIH", _QNAME, A, IN, ttl_s, 4) + address.packed
        return _own(query, NOERROR, answer=record, authoritative=True)
    data = (
        struct.pack(">H", _QNAME) + b"\6nobody\7invalid\0" + struct.pack(">5I", 1, 3600, 1200, 604800, ttl_s)
    )
    record = struct.pack(">HHHIH", _QNAME, SOA, IN, ttl_s, len(data)) + data
    return _own(query, NOERROR, authority=record, authoritative=True)


def retold(answer: bytes, query: bytes, *, additional_offset: int, over_udp: bool) -> bytes | None:
    """An answer told to another query for the same question; None when the query's cannot be read.

    The client's own question is put back, so its case stays; the additional section goes, since its OPT
    belongs to the other client. What a datagram may not hold is told as truncated: TCP has it.
    """
    read = parse_question(query)
    if read is None or len(answer) < additional_offset:
        return None
    question_end, opt = read[1], _own_opt(query)
    body = answer[question_end:additional_offset]
    flags = int.from_bytes(answer[2:4], "big") & (QR | OPCODE | RA | RCODE)
    flags |= int.from_bytes(query[2:4], "big") & (RD | CD)
    counts = answer[4:10]
    if over_udp and question_end + len(body) + len(opt) > udp_size(query):
        flags, counts, body = flags | TC, b"\0\1\0\0\0\0", b""
    header = query[:2] + flags.to_bytes(2, "big") + counts + bool(opt).to_bytes(2, "big")
    return header + query[HEADER_LENGTH:question_end] + body + opt


def udp_size(query: bytes) -> int:
    """The largest answer the client takes over UDP (RFC 6891 section 6.2.3)."""
    message = parse_message(query)
    opt = message.opt() if message else None
    return max(512, opt.rclass) if opt else 512


def _own(
    query: bytes, rcode: int, *, answer: bytes = b"", authority: bytes = b"", authoritative: bool = False
) -> bytes:
    """An answer with at most one record in each section."""
    read = parse_question(query)
    question = query[HEADER_LENGTH : read[1]] if read else b""
    opt = _own_opt(query)
    flags = int.from_bytes(query[2:4], "big") & (OPCODE | RD | CD)
    flags |= QR | RA | rcode | (AA if authoritative else 0)
    counts = struct.pack(">HHHH", bool(question), bool(answer), bool(authority), bool(opt))
    return query[:2] + flags.to_bytes(2, "big") + counts + question + answer + authority + opt


def _own_opt(query: bytes) -> bytes:
    """An OPT record for a query that has one (RFC 6891 section 7), with its DO bit (RFC 3225) and cookie."""
    message = parse_message(query)
    opt = message.opt() if message else None
    if opt is None:
        return b""
    cookie = _full_cookie(query[opt.data_offset : opt.data_offset + opt.data_length])
    return struct.pack(">BHHIH", 0, OPT, UDP_SIZE, opt.ttl & DO, len(cookie)) + cookie


def _full_cookie(options: bytes) -> bytes:
    """The COOKIE option as it stands, when a server's part is in it; else nothing."""
    offset = 0
    while offset + _OPTION.size <= len(options):
        code, length = _OPTION.unpack_from(options, offset)
        end = offset + _OPTION.size + length
        if code == _COOKIE and length in _FULL_COOKIE and end <= len(options):
            return options[offset:end]
        offset = end
    return b""
