"""A question and its answer over both transports, and what they are made of."""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

QUERY, RESPONSE = 0x0100, 0x8180
"""The flags of a stub's query, and of a recursive resolver's answer to it."""

QNAME = b"\xc0\x0c"
"""A pointer to the question's name."""

TTL = 86_399
"""Every record's: four octets that occur nowhere else, so that replays are compared without reading them."""

LONG_TTL = 0x7FFFFFFF
"""The longest there can be."""

_TTLS = re.compile(b"(" + b"|".join(re.escape(struct.pack(">I", ttl)) for ttl in (TTL, LONG_TTL)) + b")")
_AGES_BY = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """All ids are zero; the server answers under the id that it was asked with."""

    what: str
    query: bytes
    over_udp: bytes
    over_tcp: tuple[bytes, ...]
    """Several messages for a zone transfer (RFC 5936)."""


class Names:
    """Names below a parent, each one new."""

    def __init__(self, parent: str) -> None:
        self._parent = parent
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"c{self._count:03}.{self._parent}"


def pair(what: str, query: bytes, answer: bytes, *over_tcp: bytes) -> Pair:
    """The same answer over both transports, unless another is given for TCP."""
    return Pair(what=what, query=query, over_udp=answer, over_tcp=over_tcp or (answer,))


def wire(name: str) -> bytes:
    labels = name.split(".") if name else []
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def question(name: str, qtype: int, qclass: int = 1) -> bytes:
    return wire(name) + struct.pack(">HH", qtype, qclass)


def message(
    flags: int,
    asked: bytes,
    *,
    answers: Iterable[bytes] = (),
    authorities: Iterable[bytes] = (),
    additionals: Iterable[bytes] = (),
    questions: int = 1,
) -> bytes:
    """A message of one question and these records, counted truly."""
    sections = [list(answers), list(authorities), list(additionals)]
    header = struct.pack(">6H", 0, flags, questions, *(len(section) for section in sections))
    return header + asked + b"".join(octets for section in sections for octets in section)


def record(rtype: int, data: bytes, *, owner: bytes = QNAME, rclass: int = 1, ttl: int = TTL) -> bytes:
    return owner + struct.pack(">HHIH", rtype, rclass, ttl, len(data)) + data


def address(last: int = 7) -> bytes:
    return record(1, bytes([198, 51, 100, last]))


def soa(*, owner: bytes = QNAME) -> bytes:
    data = wire("ns1.example.net") + wire("hostmaster.example.net") + struct.pack(">5I", 1, 2, 3, 4, TTL)
    return record(6, data, owner=owner)


def differs_only_in_ttls(first: bytes, again: bytes) -> bool:
    """Whether a replay is what was said first, but for ids, and TTLs that some seconds were taken off."""
    if len(first) != len(again):
        return False
    offset = 2
    for piece in _TTLS.split(first[2:]):
        told = again[offset : offset + len(piece)]
        if _TTLS.fullmatch(piece):
            ttl, less = (int.from_bytes(octets, "big") for octets in (piece, told))
            if not ttl - _AGES_BY <= less <= ttl:
                return False
        elif told != piece:
            return False
        offset += len(piece)
    return True
