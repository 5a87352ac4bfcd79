"""Many datagrams at once, on real sockets: who gets what, and what one bad datagram does to the others."""

import socket
from collections.abc import Iterator

import pytest

from tidegate_dns.datagrams import Datagrams

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture(params=FAMILIES)
def sockets(request: pytest.FixtureRequest) -> Iterator[list[socket.socket]]:
    """A server and four clients of one family, on loopback."""
    made = [socket.socket(FAMILIES[request.param], socket.SOCK_DGRAM) for _ in range(5)]
    for sock in made:
        sock.bind((request.param, 0))
        sock.settimeout(2)
    yield made
    for sock in made:
        sock.close()


def test_each_sender_gets_its_own_answer(sockets: list[socket.socket]) -> None:
    """N13: answers go where each came from, whichever are answered, and again in the same memory."""
    server, *clients = sockets
    datagrams = Datagrams(server, 8)
    for round_ in (b"first ", b"second, longer than what was answered first "):
        for number, client in enumerate(clients):
            client.sendto(bytes([77, number]) + round_ + bytes([number]) * number, server.getsockname())

        received = datagrams.receive()
        assert [datagrams.whole(number) for number in range(4)] == [
            bytes([77, number]) + behind for number, behind in enumerate(received)
        ]
        for number in (0, 1, 3):
            datagrams.reply(number, received[number] + b" answered")

        assert received == [round_ + bytes([number]) * number for number in range(4)]
        assert datagrams.send() == 3
        for number in (0, 1, 3):
            answer, told_by = clients[number].recvfrom(100)
            assert answer == bytes([77, number]) + received[number] + b" answered"
            assert told_by == server.getsockname()
        assert [datagrams.sender(number) for number in range(4)] == [each.getsockname() for each in clients]
    clients[2].setblocking(False)
    with pytest.raises(BlockingIOError):
        clients[2].recv(100)


def test_no_more_than_asked_for_is_taken_and_nothing_when_there_is_nothing(
    sockets: list[socket.socket],
) -> None:
    """I8: the rest waits in the socket."""
    server, client, *_ = sockets
    datagrams = Datagrams(server, 3)
    for number in range(5):
        client.sendto(b"id" + bytes([number]), server.getsockname())

    assert datagrams.receive() == [b"\0", b"\1", b"\2"]
    assert datagrams.receive() == [b"\3", b"\4"]
    assert datagrams.receive() == []
    assert datagrams.send() == 0


def test_an_answer_that_cannot_be_sent_costs_the_others_nothing(sockets: list[socket.socket]) -> None:
    """I1: 65,530 octets fit no datagram; the kernel stops at such a message."""
    server, *clients = sockets
    datagrams = Datagrams(server, 8)
    for client in clients:
        client.sendto(b"query", server.getsockname())
    datagrams.receive()
    for number in range(4):
        datagrams.reply(number, bytes(65528) if number in (0, 2) else b"answer")

    assert datagrams.send() == 2
    assert (clients[1].recv(100), clients[3].recv(100)) == (b"quanswer", b"quanswer")


@pytest.mark.parametrize("scrap", [b"", b"i", b"id"])
def test_a_scrap_is_what_it_is(sockets: list[socket.socket], scrap: bytes) -> None:
    """I8: shorter than what an answer repeats, after one that was longer."""
    server, client, *_ = sockets
    datagrams = Datagrams(server, 2)
    for message in (b"a longer one", scrap):
        client.sendto(message, server.getsockname())
        received = datagrams.receive()

    assert received == [b""]
    assert datagrams.whole(0) == scrap


def test_the_largest_datagram_arrives_whole(sockets: list[socket.socket]) -> None:
    """N13: nothing is cut off."""
    server, client, *_ = sockets
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    largest = bytes(range(250)) * 260
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client.sendto(largest, server.getsockname())

    datagrams = Datagrams(server, 2)

    assert datagrams.receive() == [largest[2:]]
    assert datagrams.whole(0) == largest
