"""Pairs of which one half breaks a rule of RFC 1035: whatever a resolver makes of it is what the client gets.

Left out is what RFC 5452 forbids to take: an answer under another id, to another question, or that is none.
"""

import struct
from collections.abc import Iterator

from dns_corpus.edns import opt
from dns_corpus.pair import (
    QNAME,
    QUERY,
    RESPONSE,
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

FORMERR, NOTIMP, REFUSED = 1, 4, 5


def broken(names: Names) -> Iterator[Pair]:
    """Broken answers to good questions, then broken questions, then what is no plain question at all."""
    yield from answers(names)
    yield from questions(names)
    yield from other_messages(names)


def answers(names: Names) -> Iterator[Pair]:
    """What follows the question, or what its counts say."""
    asked_for = question(names(), 1)
    good = message(RESPONSE, asked_for, answers=[address()])
    end = 12 + len(asked_for)
    forms = {
        "octets behind the end": good + b"behind the end",
        "one answer more than there is": good[:7] + b"\2" + good[8:],
        "65535 answers": good[:6] + b"\xff\xff" + good[8:],
        "one answer less than there is": good[:7] + b"\0" + good[8:],
        "an authority that is not there": good[:9] + b"\1" + good[10:],
        "cut in the data": good[:-2],
        "cut before the data": good[: end + 12],
        "cut in the owner": good[: end + 1],
        "no record at all": good[:end],
        "three octets of address": good[:end] + record(1, b"\1\2\3"),
        "sixteen octets of address": good[:end] + record(1, bytes(16)),
        "data longer than the message": good[:-6] + b"\0\xff" + good[-4:],
        "an owner that points at itself": good[:end]
        + record(1, bytes(4), owner=struct.pack(">H", 0xC000 | end)),
        "an owner that points ahead": good[:end] + record(1, bytes(4), owner=b"\xc0\xff"),
        "an owner of pointers in a ring": good[:end] + record(1, bytes(4), owner=b"\1a\xc0" + bytes([end])),
        "an owner with a label of type 01": good[:end] + record(1, bytes(4), owner=b"\x41" + bytes(65)),
        "an owner of 300 octets": good[:end] + record(1, bytes(4), owner=(b"\x3f" + b"o" * 63) * 5 + b"\0"),
        "two OPT records": message(
            RESPONSE, asked_for, answers=[address()], additionals=[opt(512), opt(1232)]
        ),
        "OPT among the answers": message(RESPONSE, asked_for, answers=[opt(512), address()]),
        "options cut short": message(
            RESPONSE, asked_for, additionals=[record(41, b"\0\x0a\0\x18abc", owner=b"\0", rclass=1232, ttl=0)]
        ),
        "a SOA without its numbers": message(RESPONSE | 3, asked_for, authorities=[record(6, b"\0\0")]),
        "a service binding cut short": message(
            RESPONSE, asked_for, answers=[record(65, b"\0\1\0\0\4\0\x08abc")]
        ),
        "only noise behind the question": good[:end] + bytes(range(256)),
    }
    for what, answer in forms.items():
        name = names()
        told = answer.replace(asked_for, question(name, 1))
        yield pair(what, message(QUERY, question(name, 1)), told)
    for what, rcode in (("FORMERR", FORMERR), ("NOTIMP", NOTIMP), ("REFUSED", REFUSED), ("SERVFAIL", 2)):
        bare = message(RESPONSE | rcode, b"", questions=0)
        yield pair(f"a bare {what}", message(QUERY, question(names(), 1)), bare)


def questions(names: Names) -> Iterator[Pair]:
    """Names that cannot be, and messages that end too early or too late; most servers say FORMERR."""
    label = names().partition(".")[0].encode()
    end = struct.pack(">HH", 1, 1)
    longest = (b"\x3f" + b"l" * 63) * 3
    forms = {
        "no question where one is counted": b"",
        "half a name": bytes([len(label)]) + label,
        "a name without its type": wire(names()),
        "half a type": wire(names()) + b"\0",
        "octets behind the question": question(names(), 1) + b"behind the end",
        "the root": b"\0" + struct.pack(">HH", 2, 1),
        "a label of 63 octets": bytes([63]) + (label * 16)[:63] + wire(names()) + end,
        "a name of 255 octets": longest + bytes([61]) + (label * 16)[:61] + b"\0" + end,
        "a name of 256 octets": longest + bytes([62]) + (label * 16)[:62] + b"\0" + end,
        "a label of 64 octets": bytes([64]) + (label * 17)[:64] + b"\0" + end,
        "an extended label": b"\x41" + label + b"\0" + end,
        "a pointer to itself": b"\xc0\x0c" + end,
        "a name that points into the header": bytes([len(label)]) + label + b"\xc0\x02" + end,
        "a name that points ahead": b"\1" + label[:1] + b"\xc0" + bytes([12 + 8]) + end + wire(names()),
        "octets that are no letters": b'\x08\0\xff.\\ "\x7f' + label[:1] + wire(names()) + end,
    }
    for what, asked in forms.items():
        query = message(QUERY, asked)
        yield pair(what, query, query[:2] + b"\x81\x81" + bytes(8))
        if what in ("octets behind the question", "octets that are no letters", "a label of 63 octets"):
            continue
        # Some do answer, with the question repeated as it came.
        other = message(QUERY | 0x20, asked)
        yield pair(
            f"{what}, answered", other, other[:2] + b"\x81\xa0" + other[4:7] + b"\1" + other[8:] + address()
        )


def other_messages(names: Names) -> Iterator[Pair]:
    """Several questions or none (RFC 9619), other opcodes, records in a query, signatures."""
    two = question(names(), 1) + question(names(), 28)
    yield pair(
        "two questions, FORMERR",
        message(QUERY, two, questions=2),
        message(RESPONSE | FORMERR, b"", questions=0),
    )
    three = two + question(names(), 1)
    yield pair(
        "three questions, answered",
        message(QUERY, three, questions=3),
        message(RESPONSE, three, questions=3, answers=[address(), address(2)]),
    )
    cookie = record(41, b"\0\x0a\0\x08" + names().encode()[:8], owner=b"\0", rclass=1232, ttl=0)
    yield pair(
        "no question but a cookie (RFC 7873 section 5.4)",
        message(QUERY, b"", questions=0, additionals=[cookie]),
        message(RESPONSE, b"", questions=0, additionals=[cookie]),
    )
    for what, opcode, rcode in (
        ("an inverse query", 1, NOTIMP),
        ("STATUS", 2, NOTIMP),
        ("opcode 3", 3, NOTIMP),
        ("NOTIFY", 4, 0),
        ("UPDATE", 5, REFUSED),
        ("opcode 15", 15, NOTIMP),
    ):
        asked_for = question(names(), 6)
        flags = opcode << 11
        yield pair(
            what,
            message(flags, asked_for, authorities=[soa()]),
            message(0x8000 | flags | rcode, asked_for),
        )
    zone = question(names(), 6)
    yield pair(
        "UPDATE, its answer bare (RFC 2136 section 3.8)",
        message(5 << 11, zone, authorities=[address()]),
        message(0x8000 | 5 << 11, b"", questions=0),
    )
    asked_for = question(names(), 1)
    yield pair(
        "a query with an answer in it",
        message(QUERY, asked_for, answers=[address(3)]),
        message(RESPONSE, asked_for, answers=[address()]),
    )
    for what, rtype, signature in (
        ("TSIG (RFC 8945)", 250, wire("hmac-sha256") + bytes(6) + b"\1\x2c\0\x10" + bytes(16) + bytes(6)),
        ("SIG(0) (RFC 2931)", 24, bytes(18) + wire("key.example.net") + bytes(64)),
    ):
        asked_for = question(names(), 1)
        signed = record(rtype, signature, owner=wire("key.example.net"), rclass=255, ttl=0)
        yield pair(
            what,
            message(QUERY, asked_for, additionals=[signed]),
            message(RESPONSE, asked_for, answers=[address()], additionals=[signed]),
        )
    long = question(names(), 1)
    yield pair(
        "5000 octets of query",
        message(
            QUERY,
            long,
            additionals=[record(41, b"\0\x0c" + struct.pack(">H", 4900) + bytes(4900), owner=b"\0")],
        ),
        message(RESPONSE, long, answers=[address(), record(16, b"\4long", owner=QNAME)]),
    )
