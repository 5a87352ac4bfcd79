"""The messages of sock_diag(7), byte for byte and whatever comes back."""

import struct
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate_agent.clients.sock_diag import SocketFacts, parse_answer, request
from tidegate_proxy.endpoint import Endpoint

HEADER = struct.Struct("=IHHII")


def answer(facts: SocketFacts, sequence: int, *, attributes: bytes = b"") -> bytes:
    """An inet_diag_msg as the kernel packs it, with a few attributes before the cgroup's id."""
    body = (
        struct.pack("=BBBB", 2, 1, 0, 0) + bytes(48) + struct.pack("=IIIII", 0, 0, 0, facts.uid, facts.inode)
    )
    cgroup = struct.pack("=HHQ", 12, 21, facts.cgroup_id)
    body += attributes + cgroup
    return HEADER.pack(HEADER.size + len(body), 20, 0, sequence, 0) + body


def test_a_request_names_the_socket_as_its_owner_sees_it() -> None:
    """N9: the client's own address first, and the original destination for its peer."""
    message = request(Endpoint.of("192.0.2.1", 40000), Endpoint.of("198.51.100.2", 443), 7)

    length, kind, flags, sequence, _ = HEADER.unpack_from(message)
    assert (length, kind, flags, sequence) == (len(message), 20, 1, 7)
    assert message[16:18] == bytes([2, 6])
    assert message[24:28] == struct.pack("!HH", 40000, 443)
    assert message[28:32] == bytes([192, 0, 2, 1])
    assert message[44:48] == bytes([198, 51, 100, 2])
    assert message[-8:] == b"\xff" * 8


@given(
    st.builds(
        SocketFacts,
        inode=st.integers(0, 2**32 - 1),
        uid=st.integers(0, 2**32 - 1),
        cgroup_id=st.integers(0, 2**64 - 1),
    ),
    st.lists(st.binary(max_size=9), max_size=4),
)
def test_an_answer_is_read_past_whatever_else_the_kernel_tells(
    facts: SocketFacts, others: list[bytes]
) -> None:
    """N9: newer kernels add attributes; each is padded to four bytes."""
    before = b"".join(
        struct.pack("=HH", 4 + len(other), 1) + other + bytes(-len(other) % 4) for other in others
    )

    assert parse_answer(answer(facts, 3, attributes=before), 3) == facts


def test_no_such_socket_is_an_answer_too() -> None:
    """N9: ENOENT for a client that has closed already."""
    assert parse_answer(HEADER.pack(36, 2, 0, 3, 0) + struct.pack("=i", -2) + bytes(16), 3) is None


def test_an_answer_to_an_earlier_request_is_not_taken() -> None:
    """N9: or one client would be judged as another."""
    facts = SocketFacts(inode=1, uid=2, cgroup_id=3)

    with pytest.raises(ValueError, match="request 3, not 4"):
        parse_answer(answer(facts, 3), 4)


@given(st.binary(max_size=200))
@example(HEADER.pack(88, 20, 0, 1, 0) + bytes(72) + struct.pack("=HH", 0, 1))
@example(HEADER.pack(88, 20, 0, 1, 0) + bytes(72) + struct.pack("=HH", 12, 21))
def test_nothing_that_comes_back_raises_anything_else(data: bytes) -> None:
    """I8: bounded, whatever the message claims of its lengths."""
    with suppress(ValueError):
        parse_answer(data, 1)
