"""Look-ups left unread on real sockets, given up with SERVFAIL (N5)."""

import socket
from collections.abc import Iterator

import pytest
from dnslib import QTYPE, RCODE, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.unread import give_up_unread, servfail


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def ask(port: socket.socket, query: bytes) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(2)
    client.connect(port.getsockname())
    client.send(query)
    return client


def test_every_unread_lookup_is_told_servfail_from_the_port_it_was_sent_to(port: socket.socket) -> None:
    """N5: that is what makes its client ask again at once."""
    queries = [DNSRecord.question(f"{number}.example.org", "AAAA") for number in range(3)]
    clients = [ask(port, query.pack()) for query in queries]

    assert give_up_unread([port]) == 3

    for client, query in zip(clients, queries, strict=True):
        with client:
            answer = DNSRecord.parse(client.recv(512))
        assert (answer.header.id, answer.header.qr, answer.header.rd) == (query.header.id, 1, 1)
        assert answer.header.rcode == RCODE.SERVFAIL
        assert answer.q == query.q
    assert give_up_unread([port]) == 0


def test_an_edns_query_loses_its_additional_section() -> None:
    """RFC 6891 6.1.1 asks for an OPT record in answers; RFC 1035's bare error is understood all the same."""
    query = DNSRecord(DNSHeader(id=7, rd=1, cd=1), q=DNSQuestion("a.example.org", QTYPE.A))
    plain = query.pack()
    with_edns = plain[:11] + b"\x01" + plain[12:] + b"\0\0\x29\x10\0\0\0\x80\0\0\0"

    told = servfail(with_edns)

    assert told is not None
    answer = DNSRecord.parse(told)
    assert (answer.header.id, answer.header.cd, answer.ar) == (7, 1, [])
    assert len(told) == len(plain)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 11,
        DNSRecord.question("a.example.org").reply().pack(),
        DNSRecord(DNSHeader(id=1)).pack(),
        DNSRecord.question("a.example.org").pack()[:-1],
        b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    ],
    ids=["empty", "short header", "an answer", "no question", "cut question", "compressed name"],
)
def test_what_is_no_query_is_not_answered(message: bytes) -> None:
    """I8: an answer to an answer could go round for ever."""
    assert servfail(message) is None


@given(st.binary(max_size=64))
def test_no_bytes_make_it_raise_or_answer_more_than_was_asked(message: bytes) -> None:
    told = servfail(message)

    assert told is None or (len(told) <= len(message) and told[:2] == message[:2])
