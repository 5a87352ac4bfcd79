"""One pair for each type of record: common, rare, unknown, and those that are questions only."""

import base64
import struct
from collections.abc import Iterator

from dnslib import QTYPE, RR, DNSRecord

from dns_corpus.pair import (
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

DIGEST = "49FD46E6C4B45C55D4AC69CBD3CD34AC1AFE51DEAA7C11F7B46CF4C3C5C0E0E1"
KEY = base64.b64encode(bytes(range(64))).decode()

HINTS = ("198.51.100.65", "2001:db8:c6::65")
"""Addresses that only a service binding has."""

PRESENTED = (
    "A 198.51.100.7",
    "AAAA 2001:db8:c6::7",
    "NS ns1.example.net.",
    "CNAME target.example.net.",
    f"SOA ns1.example.net. hostmaster.example.net. 1 2 3 4 {TTL}",
    "PTR host.example.net.",
    "MX 10 mail.example.net.",
    'TXT "v=spf1 -all" "second string"',
    "SRV 1 2 443 srv.example.net.",
    'NAPTR 100 10 "S" "SIP+D2U" "!^.*$!sip:info@example.net!" _sip._udp.example.net.',
    'CAA 0 issue "ca.example.net"',
    f"DS 60485 8 2 {DIGEST}",
    f"DNSKEY 257 3 13 {KEY}",
    f"RRSIG A 13 3 {TTL} 20380101000000 20240101000000 2642 example.net. {KEY}",
    "NSEC next.example.net. A MX RRSIG NSEC",
    f"HTTPS 1 . alpn=h2,h3 ipv4hint={HINTS[0]} ipv6hint={HINTS[1]}",
    f"SSHFP 4 2 {DIGEST}",
    f"TLSA 3 1 1 {DIGEST}",
    "LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m",
    "RP mbox.example.net. txt.example.net.",
)

ECH = bytes.fromhex("0045fe0d0041bb0020") + bytes(range(64)) + b"\0\x10public.example.net"
TARGET = wire("target.example.net")

OPAQUE = {
    "MB": (7, TARGET),
    "NULL": (10, bytes(range(256))),
    "WKS": (11, bytes([198, 51, 100, 7, 6, 0, 0, 0, 64])),
    "HINFO": (13, b"\5AMD64\5Linux"),
    "AFSDB": (18, b"\0\1" + TARGET),
    "X25": (19, b"\x0c311061700956"),
    "ISDN": (20, b"\x0f150862028003217\x03004"),
    "RT": (21, b"\0\2" + TARGET),
    "NSAP": (22, bytes.fromhex("47000580005a0000000001e133ffffff00016100")),
    "KEY": (25, bytes.fromhex("02000305") + bytes(32)),
    "NSEC3": (50, bytes.fromhex("0101000c04aabbccdd14") + bytes(range(20)) + bytes.fromhex("000640000000")),
    "NSEC3PARAM": (51, bytes.fromhex("0100000c04aabbccdd")),
    "DNAME": (39, TARGET),
    "CERT": (37, bytes.fromhex("0001000008") + bytes(60)),
    "APL": (42, bytes.fromhex("0001180301020300020383200100")),
    "IPSECKEY": (45, bytes.fromhex("0a0102c6336407") + bytes(30)),
    "DHCID": (49, bytes.fromhex("000201") + bytes(32)),
    "SMIMEA": (53, bytes.fromhex("030101") + bytes(32)),
    "HIP": (55, bytes.fromhex("10020040") + bytes(16) + bytes(64)),
    "CDS": (59, bytes.fromhex("ec450802") + bytes(32)),
    "CDNSKEY": (60, bytes.fromhex("0101030d") + bytes(64)),
    "OPENPGPKEY": (61, bytes(300)),
    "CSYNC": (62, bytes.fromhex("0000004200030004600000 08".replace(" ", ""))),
    "ZONEMD": (63, bytes.fromhex("78578f4d0101") + bytes(48)),
    "SVCB, an alias": (64, b"\0\0" + TARGET),
    "HTTPS with ech": (65, b"\0\1\0" + struct.pack(">HH", 5, len(ECH)) + ECH),
    "SPF": (99, b"\x0bv=spf1 -all"),
    "EUI48": (108, bytes(6)),
    "EUI64": (109, bytes(8)),
    "URI": (256, b"\0\1\0\2https://example.net/"),
    "type 0": (0, b"nothing"),
    "type 65280, private": (65280, bytes(range(7))),
    "type 65535": (65535, b""),
}


def typed(names: Names) -> Iterator[Pair]:
    """Types as dnslib writes them, others as octets, and questions for more than one type."""
    for presented in PRESENTED:
        name = names()
        mnemonic = presented.partition(" ")[0]
        asked = DNSRecord.question(name, mnemonic)
        asked.header.id = 0
        reply = asked.reply(aa=0)
        reply.add_answer(*RR.fromZone(f"{name}. {TTL} IN {presented}"))
        yield pair(mnemonic, bytes(asked.pack()), bytes(reply.pack()))
    for what, (rtype, data) in OPAQUE.items():
        asked_for = question(names(), rtype)
        yield pair(
            what, message(QUERY, asked_for), message(RESPONSE, asked_for, answers=[record(rtype, data)])
        )
    for what, qtype in (("ANY", QTYPE.reverse["ANY"]), ("MAILB", 253), ("MAILA", 254)):
        asked_for = question(names(), qtype)
        records = [address(), record(15, b"\0\x0a" + TARGET), soa(), record(16, b"\3any")]
        yield pair(what, message(QUERY, asked_for), message(RESPONSE, asked_for, answers=records))
    yield from transfers(names)


def transfers(names: Names) -> Iterator[Pair]:
    """AXFR (RFC 5936) and IXFR (RFC 1995): truncated or refused over UDP, many messages over TCP."""
    asked_for = question(names(), 252)
    hosts = [record(1, bytes([198, 51, 100, n]), owner=bytes([2]) + b"%02d" % n + QNAME) for n in range(90)]
    pieces = [hosts[start : start + 15] for start in range(0, 90, 15)]
    yield pair(
        "AXFR",
        message(QUERY, asked_for),
        message(RESPONSE | 5, asked_for),
        message(RESPONSE, asked_for, answers=[soa(), address()]),
        *(message(RESPONSE, asked_for, answers=piece) for piece in pieces[:3]),
        *(message(RESPONSE, b"", questions=0, answers=[record(1, bytes(4), owner=wire("a.example.net"))]),),
        message(RESPONSE, asked_for, answers=[soa()]),
    )
    asked_for = question(names(), 251)
    since = soa()
    yield pair(
        "IXFR",
        message(0, asked_for, authorities=[since]),
        message(RESPONSE, asked_for, answers=[soa()]),
        message(RESPONSE, asked_for, answers=[soa(), since, address(1)]),
        message(RESPONSE, asked_for, answers=[soa(), address(2), soa()]),
    )
