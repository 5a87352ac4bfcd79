"""Which questions the rules look for: the rules, evaluated here as the kernel would, against the zone."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.steering.listing import statement_text
from tidegate_agent.steering.question import CASE_MASK, NAME_OFFSET, AsksFor, questions_of
from tidegate_dns.zone import Zone

CHARACTERS = "abcxyzABCXYZ0189-_"
LABELS = st.text(CHARACTERS, min_size=1, max_size=63).filter(lambda label: label.strip("-") == label)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 180)
HOSTS = NAMES.filter(lambda name: not name.replace(".", "").isdigit())
ZONES = st.builds(
    lambda exact, parents: Zone.of([*exact, *(f"*.{parent}" for parent in parents)]),
    st.lists(HOSTS, max_size=4),
    st.lists(HOSTS, max_size=3),
)


def datagram(name: str, *, more: bytes = b"") -> bytes:
    """A UDP header and a query for `name`."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", 0x7A11, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1) + more
    return struct.pack("!4H", 40000, 53, 8 + len(query), 0) + query


def load(packet: bytes, offset: int, length: int) -> bytes | None:
    """nf_tables' payload expression: nothing where the packet ends before (NFT_BREAK)."""
    return packet[offset : offset + length] if offset + length <= len(packet) else None


def matches(question: AsksFor, packet: bytes) -> bool:
    """payload, cmp, payload, bitwise, cmp."""
    length = load(packet, NAME_OFFSET, 1)
    octets = load(packet, NAME_OFFSET + question.offset, len(question.octets))
    if length is None or octets is None or length != bytes([question.label_length]):
        return False
    return bytes(octet & CASE_MASK for octet in octets) == question.octets


def found(patterns: Sequence[str], name: str) -> bool:
    return any(matches(question, datagram(name)) for question in questions_of(Zone.of(patterns)))


@given(zone=ZONES, label=LABELS, number=st.integers(0, 9), shouts=st.integers(0))
def test_every_name_of_the_zone_is_found_in_any_case(
    zone: Zone, label: str, number: int, shouts: int
) -> None:
    """N2: a steered question that went direct would be a pull that misses the cache."""
    names = [*sorted(zone.exact_names), *(f"{label}.{parent}" for parent in sorted(zone.wildcard_parents))]
    if not names:
        return
    name = names[number % len(names)]
    written = "".join(
        letter.upper() if shouts >> place & 1 else letter.lower() for place, letter in enumerate(name)
    )

    assert zone.covers(written)
    assert any(matches(question, datagram(written)) for question in questions_of(zone))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a.b", "a.b"),
        ("a.b", "A.B"),
        ("registry-1.docker.io", "rEgIsTrY-1.DoCkEr.Io"),
        ("*.gcr.io", "x.gcr.io"),
        ("*.gcr.io", f"{'x' * 63}.GCR.io"),
        ("*.b", "a.b"),
        ("*.a-very-long-parent.of-many-letters.example", "eu.A-very-long-parent.of-many-letters.example"),
    ],
)
def test_a_steered_name_is_found(pattern: str, name: str) -> None:
    """N2: short and long names, and a wildcard's shortest and longest label."""
    assert found([pattern], name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a.b", "a.c"),
        ("a.b", "a.b.c"),
        ("a.b", "x.a.b"),
        ("a.b", "a"),
        ("registry-1.docker.io", "registry-2.docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("*.gcr.io", "gcr.io"),
        ("*.gcr.io", "x.y.gcr.io"),
        ("*.gcr.io", "x.gcr.io.example"),
    ],
)
def test_other_names_are_not_found(pattern: str, name: str) -> None:
    """N13: they stay in the kernel."""
    assert not found([pattern], name)


def test_a_name_with_the_same_first_octets_is_taken_for_a_steered_one() -> None:
    """Sixteen octets are compared, without their case bits; the responder forwards what is not its own."""
    assert found(["registry-1.docker.io"], "registry-1.docket.example")
    assert not found(["registry-1.docker.io"], "registry-1.docks.example")


def test_each_look_is_asked_for_once() -> None:
    """Names that differ behind what is compared share a rule."""
    assert len(questions_of(Zone.of(["registry-1.docker.io", "registry-1.dockey.io"]))) == 1
    assert len(questions_of(Zone.of(["*.gcr.io", "*.pkg.dev", "gcr.io"]))) == 2 * 63 + 1
    assert questions_of(Zone.of([])) == ()


def test_no_load_goes_beyond_what_a_rule_can_address_or_a_register_holds() -> None:
    """nf_tables: an offset is one octet, a register has sixteen."""
    for question in questions_of(Zone.of(["*.a-very-long-parent.of-many-letters.example", "a.b"])):
        assert NAME_OFFSET + question.offset < 256
        assert 2 <= len(question.octets) <= 16


def test_a_question_is_shown_as_nft_lists_it() -> None:
    """Leading zeros are not printed, and a label's length is."""
    (exact,) = questions_of(Zone.of(["ghcr.io"]))
    last = questions_of(Zone.of(["*.b"]))[-1]

    assert statement_text(exact) == "@th,160,8 0x4 @th,168,64 & 0xdfdfdfdfdfdfdfdf == 0x4748435202494f00"
    assert statement_text(last) == "@th,160,8 0x3f @th,672,24 & 0xdfdfdf == 0x14200"
