"""DNS messages on the wire (RFC 1035 section 4), read without being re-encoded.

Only what policy needs: the header, the one question, and where each record keeps its type, TTL and
data. Nothing here raises on hostile bytes: what cannot be read is None. It builds no messages.
"""

import struct
from dataclasses import dataclass
from typing import Literal

HEADER_LENGTH = 12
MAX_MESSAGE = 65535

QR = 0x8000
OPCODE = 0x7800
AA = 0x0400
TC = 0x0200
RD = 0x0100
RA = 0x0080
AD = 0x0020
CD = 0x0010
RCODE = 0x000F

QUERY = 0
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

A, CNAME, SOA, SIG, AAAA, OPT, TSIG = 1, 5, 6, 24, 28, 41, 250
IXFR, AXFR = 251, 252
IN = 1
ANY = 255
"""Any type, or any class, in a question (RFC 1035 sections 3.2.3 and 3.2.5)."""

DO = 0x8000  # in the TTL field of OPT (RFC 6891 section 6.1.3)

Section = Literal["answer", "authority", "additional"]

_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_QUESTION = struct.Struct(">HH")
_PRINTABLE = frozenset(range(0x21, 0x7F)) - frozenset(b".\\")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    id: int
    flags: int
    questions: int
    answers: int
    authorities: int
    additionals: int

    @property
    def is_response(self) -> bool:
        return bool(self.flags & QR)

    @property
    def opcode(self) -> int:
        return (self.flags & OPCODE) >> 11

    @property
    def rcode(self) -> int:
        """The four bits of the header; the extended ones of EDNS are not needed here."""
        return self.flags & RCODE

    @property
    def is_truncated(self) -> bool:
        return bool(self.flags & TC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`qname` is lower case, without the final dot, odd bytes as in RFC 1035 section 5.1 (`\\DDD`)."""

    qname: str
    qtype: int
    qclass: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A resource record by its place in the message; offsets count from the message's first byte."""

    section: Section
    type: int
    rclass: int
    ttl: int
    ttl_offset: int
    data_offset: int
    data_length: int

    @property
    def data_end(self) -> int:
        return self.data_offset + self.data_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A whole, well-formed message with at most one question."""

    header: Header
    question: Question | None
    question_end: int
    records: tuple[Record, ...]
    additional_offset: int

    def opt(self) -> Record | None:
        """The EDNS pseudo record (RFC 6891), if there is one."""
        return next((r for r in self.records if r.type == OPT and r.section == "additional"), None)


def parse_header(message: bytes) -> Header | None:
    """The header, or None when there are not even twelve bytes."""
    if len(message) < HEADER_LENGTH:
        return None
    id_, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    return Header(
        id=id_,
        flags=flags,
        questions=questions,
        answers=answers,
        authorities=authorities,
        additionals=additionals,
    )


def parse_question(message: bytes) -> tuple[Question, int] | None:
    """The only question and the offset behind it; None when there is none, several, or a broken one."""
    if len(message) < HEADER_LENGTH or message[4:6] != b"\0\1":
        return None
    labels: list[str] = []
    offset = HEADER_LENGTH
    end = len(message)
    while True:
        if offset >= end:
            return None
        length = message[offset]
        offset += 1
        if length == 0:
            break
        if length > 63 or offset + length > end:  # no compression: nothing stands before the question
            return None
        labels.append(_text(message[offset : offset + length]))
        offset += length
        if offset - HEADER_LENGTH > 254:  # RFC 1035 section 2.3.4: 255 octets with the root label
            return None
    if offset + 4 > end:
        return None
    qtype, qclass = _QUESTION.unpack_from(message, offset)
    return Question(qname=".".join(labels), qtype=qtype, qclass=qclass), offset + 4


def parse_message(message: bytes) -> Message | None:
    """The whole message, or None when a count, name or length in it is not true."""
    header = parse_header(message)
    if header is None or header.questions > 1:
        return None
    question: Question | None = None
    offset = HEADER_LENGTH
    if header.questions:
        read = parse_question(message)
        if read is None:
            return None
        question, offset = read
    question_end = offset
    records: list[Record] = []
    additional_offset = offset
    sections: tuple[tuple[Section, int], ...] = (
        ("answer", header.answers),
        ("authority", header.authorities),
        ("additional", header.additionals),
    )
    for section, count in sections:
        if section == "additional":
            additional_offset = offset
        for _ in range(count):
            behind_name = _skip_name(message, offset)
            if behind_name is None or behind_name + _RECORD.size > len(message):
                return None
            rtype, rclass, ttl, length = _RECORD.unpack_from(message, behind_name)
            data = behind_name + _RECORD.size
            offset = data + length
            if offset > len(message):
                return None
            records.append(
                Record(
                    section=section,
                    type=rtype,
                    rclass=rclass,
                    ttl=ttl if ttl < 0x80000000 else 0,  # RFC 2181 section 8
                    ttl_offset=behind_name + 4,
                    data_offset=data,
                    data_length=length,
                )
            )
    return Message(
        header=header,
        question=question,
        question_end=question_end,
        records=tuple(records),
        additional_offset=additional_offset,
    )


def _skip_name(message: bytes, offset: int) -> int | None:
    """Behind a name that may end in a pointer (RFC 1035 section 4.1.4), which is not followed."""
    while offset < len(message):
        length = message[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2 if offset + 2 <= len(message) else None
        if length > 63:
            return None
        offset += 1 + length
    return None


def _text(label: bytes) -> str:
    lower = label.lower()
    if _PRINTABLE.issuperset(lower):
        return lower.decode("ascii")
    return "".join(chr(byte) if byte in _PRINTABLE else f"\\{byte:03d}" for byte in lower)
