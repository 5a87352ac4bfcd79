"""Hints of service bindings."""

import struct
from ipaddress import ip_address

import pytest

from tidegate_dns.svcb import hints

V4 = [ip_address("192.0.2.7"), ip_address("192.0.2.8")]
V6 = [ip_address("2001:db8::7"), ip_address("2001:db8::8")]
HERE, THERE = b"\0", b"\3cdn\4test\0"


def parameter(key: int, value: bytes) -> bytes:
    return struct.pack(">HH", key, len(value)) + value


HINT4 = parameter(4, b"".join(address.packed for address in V4))
HINT6 = parameter(6, b"".join(address.packed for address in V6))
ALPN, PORT, ECH = parameter(1, b"\2h2"), parameter(3, b"\1\xbb"), parameter(5, bytes(range(70)))


@pytest.mark.parametrize("target", [HERE, THERE])
def test_the_hints_of_both_families_are_found_among_the_parameters(target: bytes) -> None:
    """N12, RFC 9460 section 7.3."""
    assert hints(b"\0\1" + target + ALPN + PORT + HINT4 + ECH + HINT6) == V4 + V6
    assert hints(b"\0\1" + target + HINT6) == V6


@pytest.mark.parametrize("data", [b"\0\0" + THERE, b"\0\1" + HERE + ALPN + ECH, b"\0\1" + HERE])
def test_an_alias_and_a_binding_without_hints_hint_at_nothing(data: bytes) -> None:
    """RFC 9460 section 2.4."""
    assert hints(data) == []


def test_broken_data_hints_at_nothing_it_does_not_hold() -> None:
    """I8: cut anywhere, and with lengths that are no address's."""
    data = b"\0\1" + THERE + HINT4 + HINT6
    for cut in range(len(data)):
        assert hints(data[:cut]) in ([], V4)
    assert hints(b"\0\1" + HERE + parameter(4, bytes(5)) + parameter(6, bytes(15))) == []
    assert hints(b"\0\1\x3fcdn" + HINT4) == []
    assert hints(b"\0\1" + HERE + HINT4 + b"\0") == []
