"""Pairs with EDNS (RFC 6891): options, cookies, sizes, versions and extended codes; made with scapy."""

from collections.abc import Iterator

from scapy.layers.dns import (
    DNS,
    DNSQR,
    DNSRR,
    DNSRROPT,
    EDNS0COOKIE,
    EDNS0DAU,
    EDNS0DHU,
    EDNS0N3U,
    EDNS0PADDING,
    EDNS0TLV,
    EDNS0ClientSubnet,
    EDNS0ExtendedDNSError,
)

from dns_corpus.pair import QUERY, RESPONSE, TTL, Names, Pair, address, message, pair, question, record

CLIENT, SERVER = bytes(range(8)), bytes(range(64, 80))
DO = 0x8000

OPTIONS: dict[str, tuple[list[object], list[object]]] = {
    "no options": ([], []),
    "NSID": ([EDNS0TLV(optcode=3)], [EDNS0TLV(optcode=3, optdata=b"ns-7.example")]),
    "client subnet": (
        [EDNS0ClientSubnet(source_plen=24, address="198.51.100.0")],
        [EDNS0ClientSubnet(source_plen=24, scope_plen=16, address="198.51.100.0")],
    ),
    "client subnet, IPv6": (
        [EDNS0ClientSubnet(family=2, source_plen=56, address="2001:db8:77::")],
        [EDNS0ClientSubnet(family=2, source_plen=56, scope_plen=48, address="2001:db8:77::")],
    ),
    "a first cookie": (
        [EDNS0COOKIE(client_cookie=CLIENT)],
        [EDNS0COOKIE(client_cookie=CLIENT, server_cookie=SERVER)],
    ),
    "a cookie that is known": (
        [EDNS0COOKIE(client_cookie=CLIENT, server_cookie=SERVER)],
        [EDNS0COOKIE(client_cookie=CLIENT, server_cookie=SERVER[::-1])],
    ),
    "keepalive (RFC 7828)": ([EDNS0TLV(optcode=11)], [EDNS0TLV(optcode=11, optdata=b"\0\x64")]),
    "padding (RFC 7830)": ([EDNS0PADDING(padding=bytes(80))], [EDNS0PADDING(padding=bytes(400))]),
    "DAU, DHU, N3U": (
        [EDNS0DAU(alg_code=[8, 13]), EDNS0DHU(alg_code=[1, 2]), EDNS0N3U(alg_code=[1])],
        [],
    ),
    "an extended error": ([], [EDNS0ExtendedDNSError(info_code=22, extra_text="no reachable authority")]),
    "expire (RFC 7314)": ([EDNS0TLV(optcode=9)], [EDNS0TLV(optcode=9, optdata=b"\0\0\x0e\x10")]),
    "key tags (RFC 8145)": ([EDNS0TLV(optcode=14, optdata=b"\x4f\x66")], []),
    "an unknown option": ([EDNS0TLV(optcode=65001, optdata=b"x" * 20)], [EDNS0TLV(optcode=65001)]),
    "many options": (
        [EDNS0TLV(optcode=3), EDNS0COOKIE(client_cookie=CLIENT), EDNS0PADDING(padding=bytes(12))],
        [
            EDNS0TLV(optcode=3, optdata=b"ns"),
            EDNS0COOKIE(client_cookie=CLIENT, server_cookie=SERVER),
            EDNS0ExtendedDNSError(info_code=3, extra_text="stale"),
            EDNS0PADDING(padding=bytes(99)),
        ],
    ),
}


def extended(names: Names) -> Iterator[Pair]:
    """Options with DO and without, then what else an OPT record says."""
    for what, (asked_with, told_with) in OPTIONS.items():
        for flags in (0, DO):
            query = DNS(
                id=0, rd=1, qd=[DNSQR(qname=names())], ar=[DNSRROPT(rclass=1232, z=flags, rdata=asked_with)]
            )
            answer = DNS(
                id=0,
                qr=1,
                rd=1,
                ra=1,
                qd=query.qd,
                an=[DNSRR(rrname=query.qd[0].qname, ttl=TTL, rdata="198.51.100.9")],
                ar=[DNSRROPT(rclass=4096, z=flags, rdata=told_with)],
            )
            yield pair(f"{what}{', DO' if flags else ''}", bytes(query), bytes(answer))
    for size in (0, 511, 512, 4096, 65535):
        asked_for = question(names(), 1)
        yield pair(
            f"a buffer of {size}",
            message(QUERY, asked_for, additionals=[opt(size)]),
            message(RESPONSE, asked_for, answers=[address()], additionals=[opt(size)]),
        )
    for what, ours, theirs, rcode in (
        ("version 1, BADVERS", opt(1232, version=1), opt(1232, extended_rcode=1), 0),
        ("BADCOOKIE", opt(1232), opt(1232, extended_rcode=1), 7),
        ("a server that knows no EDNS", opt(1232), b"", 1),
        ("EDNS unasked", b"", opt(512), 0),
    ):
        asked_for = question(names(), 1)
        yield pair(
            what,
            message(QUERY, asked_for, additionals=[ours] if ours else []),
            message(RESPONSE | rcode, asked_for, additionals=[theirs] if theirs else []),
        )
    asked_for = question(names(), 1)
    glue = record(1, bytes(4))
    yield pair(
        "OPT in the middle of its section",
        message(QUERY, asked_for, additionals=[opt(1232)]),
        message(RESPONSE, asked_for, answers=[address()], additionals=[glue, opt(1232), glue]),
    )


def opt(size: int, *, version: int = 0, extended_rcode: int = 0) -> bytes:
    return record(41, b"", owner=b"\0", rclass=size, ttl=extended_rcode << 24 | version << 16)
