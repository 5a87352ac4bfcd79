"""Queries for steered names, however they may be written, and for others that look a little like them."""

import struct

from .namespace import question
from .place import STEERED

EDNS = struct.pack("!BHHIH", 0, 41, 1232, 0x8000, 12) + b"\x00\x0a\x00\x08tidegate"
"""An OPT record with DO and a cookie (RFC 6891, RFC 7873)."""

STEERED_QUESTIONS = {
    "exact": question(STEERED),
    "mixed case": question("ReGiStRy-1.rEgIsTrY.eXaMpLe"),
    "EDNS": question(STEERED.upper(), more=EDNS),
    "short": question("a.B"),
    "long": question("X.a-rather-LONG-host-name.example"),
    "a wildcard's label of 1": question("1.WILD.example"),
    "a wildcard's label of 63": question(f"{'Ab' * 31}c.wild.EXAMPLE", more=EDNS),
    "a short parent": question("anything.aB"),
    "a label that itself looks like a name": question("wild.ab"),
}

SAME_TO_NFT = {
    "only the compared octets are the same": question("registry-1.regis-ab.example.org"),
}
"""Which nft, with its sixteen octets, cannot tell from steered ones: they come along."""

OTHER_QUESTIONS = {
    "another name": question("www.example.org"),
    "EDNS": question("www.example.org", more=EDNS),
    "below a steered one": question(f"x.{STEERED}"),
    "above a steered one": question("registry.example"),
    "another first label": question("registry-2.registry.example"),
    "two labels below": question("a.b.wild.example"),
    "the parent": question("wild.example"),
    "the parent, longer": question("x.wild.example.org"),
    "shorter than what is compared": question("x"),
    "the root": b"\x7a\x11\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1",
    "no DNS at all": b"q",
}

CONTAIN_A_STEERED_ONE = ("below a steered one", "two labels below", "the parent")
UNLIKE_QUESTIONS = {
    kind: query for kind, query in OTHER_QUESTIONS.items() if kind not in CONTAIN_A_STEERED_ONE
}
"""Iptables looks for a name anywhere in the packet, so that the others come along with it."""
