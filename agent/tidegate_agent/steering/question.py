"""Which DNS questions the kernel's rules look for: the zone as octets of a UDP packet; pure.

A question's name stands behind the headers of UDP (RFC 768, 8 octets) and DNS (RFC 1035 section 4.1.1, 12),
as labels that begin with their length. A rule compares the first label's length and up to sixteen octets of
the name, which is what a register of nf_tables holds, without regard to case (RFC 4343, and clients that mix
it on purpose). So every steered name is found; a few others are too, whose first octets are the same, and the
responder forwards those. Where a packet is too short for a comparison the kernel calls it unequal.
"""

from dataclasses import dataclass

from tidegate_dns.zone import Zone

NAME_OFFSET = 8 + 12
"""Where the question's name begins, in octets from the start of the UDP header."""

CASE_MASK = 0xDF
"""Clears the bit that tells a small ASCII letter from a capital one."""

MAX_LABEL = 63
_COMPARED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AsksFor:
    """The question's first label has this length, and its name these octets at `offset` under CASE_MASK."""

    label_length: int
    offset: int
    """In octets from the start of the name."""
    octets: bytes
    """Masked already."""


def questions_of(zone: Zone) -> tuple[AsksFor, ...]:
    """What a question for a name of the zone looks like, each look once, the exact names first.

    A wildcard's label may have any length, and what follows it stands elsewhere for each.
    """
    found = []
    for name in map(wire, sorted(zone.exact_names)):
        found.append(AsksFor(label_length=name[0], offset=1, octets=masked(name[1 : 1 + _COMPARED])))
    for parent in map(wire, sorted(zone.wildcard_parents)):
        octets = masked(parent[:_COMPARED])
        for length in range(1, MAX_LABEL + 1):
            found.append(AsksFor(label_length=length, offset=1 + length, octets=octets))
    return tuple(dict.fromkeys(found))


def wire(name: str) -> bytes:
    """A name of the zone as a message carries it (RFC 1035 section 3.1), the root's label included."""
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split(".")) + b"\0"


def masked(octets: bytes) -> bytes:
    """The octets under CASE_MASK."""
    return bytes(octet & CASE_MASK for octet in octets)
