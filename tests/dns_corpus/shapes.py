"""Well-formed pairs of one type in every other respect: sections, names, flags, codes, sizes, case."""

import struct
from collections.abc import Iterator
from typing import TypedDict

from dnslib import CNAME, QTYPE, RR, A, DNSRecord

from dns_corpus.pair import (
    LONG_TTL,
    QNAME,
    QUERY,
    RESPONSE,
    TTL,
    Names,
    Pair,
    address,
    message,
    pair,
    question,
    record,
    soa,
    wire,
)

AA, TC, RD, AD, CD, Z = 0x0400, 0x0200, 0x0100, 0x0020, 0x0010, 0x0040


class Records(TypedDict, total=False):
    answers: list[bytes]
    authorities: list[bytes]
    additionals: list[bytes]


NS = record(2, wire("ns1.example.net"))
GLUE = record(1, bytes([198, 51, 100, 53]), owner=wire("ns1.example.net"))


def shaped(names: Names) -> Iterator[Pair]:
    """All of the above."""
    yield from chains(names)
    yield from sections(names)
    yield from flags_and_codes(names)
    yield from sizes(names)
    yield from spellings(names)


def chains(names: Names) -> Iterator[Pair]:
    for length in (1, 2, 8, 16):
        name = names()
        asked = DNSRecord.question(name)
        asked.header.id = 0
        compressed, plain = asked.reply(aa=0), []
        owner = name
        for number in range(length):
            target = f"hop{number}.cdn.example.net"
            compressed.add_answer(RR(owner, QTYPE.CNAME, rdata=CNAME(target), ttl=TTL))
            plain.append(record(5, wire(target), owner=wire(owner)))
            owner = target
        compressed.add_answer(RR(owner, QTYPE.A, rdata=A("198.51.100.8"), ttl=TTL))
        plain.append(record(1, bytes([198, 51, 100, 8]), owner=wire(owner)))
        yield pair(f"{length} aliases, compressed", bytes(asked.pack()), bytes(compressed.pack()))
        asked_for = question(names(), 1)
        yield pair(
            f"{length} aliases, in full",
            message(QUERY, asked_for),
            message(RESPONSE, asked_for, answers=plain),
        )


def sections(names: Names) -> Iterator[Pair]:
    """Which section has records, and how many (RFC 2308 section 2)."""
    contents: dict[str, tuple[int, Records]] = {
        "two addresses": (0, {"answers": [address(1), address(2)]}),
        "thirteen addresses": (0, {"answers": [address(n) for n in range(13)]}),
        "all sections": (0, {"answers": [address()], "authorities": [NS], "additionals": [GLUE]}),
        "a referral": (0, {"authorities": [NS], "additionals": [GLUE]}),
        "NODATA, type 1": (0, {"authorities": [soa(), NS], "additionals": [GLUE]}),
        "NODATA, type 2": (0, {"authorities": [soa()]}),
        "NODATA, type 3": (0, {}),
        "NXDOMAIN, type 1": (3, {"authorities": [soa(), NS], "additionals": [GLUE]}),
        "NXDOMAIN, type 2": (3, {"authorities": [soa()]}),
        "NXDOMAIN, type 3": (3, {}),
        "NXDOMAIN at an alias": (
            3,
            {"answers": [record(5, wire("gone.example.net"))], "authorities": [soa()]},
        ),
        "NODATA at an alias": (0, {"answers": [record(5, wire("here.example.net"))], "authorities": [soa()]}),
        "an alias that leads nowhere": (0, {"answers": [record(5, wire("target.example.net"))]}),
        "another type than asked for": (0, {"answers": [record(16, b"\3txt")]}),
        "class CH among IN": (0, {"answers": [address(), record(1, bytes(4), rclass=3)]}),
    }
    for what, (rcode, records) in contents.items():
        asked_for = question(names(), 1)
        yield pair(what, message(QUERY, asked_for), message(RESPONSE | rcode, asked_for, **records))


def flags_and_codes(names: Names) -> Iterator[Pair]:
    for rcode in range(16):
        asked_for = question(names(), 28)
        yield pair(f"rcode {rcode}", message(QUERY, asked_for), message(RESPONSE | rcode, asked_for))
    for what, flag in (("AA", AA), ("AD", AD), ("CD", CD), ("Z", Z), ("AA, AD, CD", AA | AD | CD)):
        asked_for = question(names(), 1)
        yield pair(
            f"answered with {what}",
            message(QUERY, asked_for),
            message(RESPONSE | flag, asked_for, answers=[address()]),
        )
    for what, flags in (
        ("no RD", 0),
        ("AD", QUERY | AD),
        ("CD", QUERY | CD),
        ("Z", QUERY | Z),
        ("TC", QUERY | TC),
    ):
        asked_for = question(names(), 1)
        yield pair(
            f"asked with {what}",
            message(flags, asked_for),
            message(0x8080 | flags & (RD | CD), asked_for, answers=[address()]),
        )
    asked_for = question(names(), 1)
    yield pair(
        "no recursion to be had", message(QUERY, asked_for), message(0x8100, asked_for, authorities=[NS])
    )
    for what, ttl in (
        ("TTL 0", 0),
        ("TTL 1", 1),
        ("TTL of 32 bits", 0xFFFFFFFF),
        ("TTL of 31 bits", LONG_TTL),
    ):
        asked_for = question(names(), 16)
        yield pair(
            what,
            message(QUERY, asked_for),
            message(RESPONSE, asked_for, answers=[record(16, b"\3ttl", ttl=ttl)]),
        )


def sizes(names: Names) -> Iterator[Pair]:
    """Up to what a transport can carry; truncated over UDP with some records, with none, or not at all."""
    for size in (511, 512, 513, 1232, 1233, 1500, 4096, 16384, 60000):
        asked_for = question(names(), 16)
        yield pair(
            f"{size} octets, more than was asked for or not",
            message(QUERY, asked_for),
            of_size(size, asked_for),
        )
    for what, part in (("nothing", []), ("one record", [record(16, b"\4part")])):
        asked_for = question(names(), 16)
        yield pair(
            f"65535 octets, {what} of it over UDP",
            message(QUERY, asked_for),
            message(RESPONSE | TC, asked_for, answers=part),
            of_size(65535, asked_for),
        )
    for count in (28, 29, 100, 1000):
        asked_for = question(names(), 1)
        addresses = [record(1, struct.pack(">I", 0xC6336400 + number)) for number in range(count)]
        whole = message(RESPONSE, asked_for, answers=addresses)
        yield pair(
            f"{count} addresses",
            message(QUERY, asked_for),
            whole if len(whole) <= 512 else message(RESPONSE | TC, asked_for, answers=addresses[:28]),
            whole,
        )


def of_size(size: int, asked_for: bytes) -> bytes:
    """Strings of a TXT record and more of them, to exactly so many octets."""
    room = size - 12 - len(asked_for)
    records = []
    while room:
        take = room if room <= 300 else min(300, room - 13)
        strings = take - len(QNAME) - 10 - 1
        records.append(record(16, _strings(strings + 1)))
        room -= take
    return message(RESPONSE, asked_for, answers=records)


def _strings(octets: int) -> bytes:
    """Character strings that take so many octets together, two at most."""
    if octets <= 256:
        return bytes([octets - 1]) + b"x" * (octets - 1)
    return _strings(octets - 100) + _strings(100)


def spellings(names: Names) -> Iterator[Pair]:
    """Case (also 0x20, draft-vixie-dnsext-dns0x20), and classes that are not IN."""
    name = names()
    mixed = "".join(letter.upper() if number % 2 else letter for number, letter in enumerate(name))
    for what, asked_name, told_name in (
        ("case is repeated", mixed, mixed),
        ("capitals are repeated", name.upper(), name.upper()),
        ("case is not repeated", mixed.swapcase(), name),
    ):
        asked_for = question(asked_name, 1)
        yield pair(
            what, message(QUERY, asked_for), message(RESPONSE, question(told_name, 1), answers=[address()])
        )
    for what, qclass in (("CH", 3), ("HS", 4), ("NONE", 254), ("ANY", 255), ("65280", 65280)):
        asked_for = question(names(), 1, qclass)
        answer = record(16, b"\5class", rclass=3 if qclass == 3 else 1)
        yield pair(f"class {what}", message(QUERY, asked_for), message(RESPONSE, asked_for, answers=[answer]))
