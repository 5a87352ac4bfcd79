"""The bypass detector's decisions: what a packet says, why a connection went past, and what is kept of it."""

import socket
import ssl
import struct
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tidegate_agent.bypass import BypassWatch, Cause, Segment, parse_segment, why_bypassed
from tidegate_agent.bypass.packet import parse_datagram
from tidegate_agent.steering.nflog import Logged, parse_logged
from tidegate_agent.steering.watch import FORWARDED, OWN
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.interceptor import Arrival

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
CLIENT = Endpoint.of("192.0.2.7", 40000)


def hello(host: str) -> bytes:
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def packet(
    data: bytes, *, address: str = "198.51.100.9", port: int = 443, sequence: int = 1, options: bool = True
) -> bytes:
    tcp = TCP(
        sport=CLIENT.port,
        dport=port,
        seq=sequence,
        options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))] if options else [],
    )
    network = IPv6(src="2001:db8::7", dst=address) if ":" in address else IP(src="192.0.2.7", dst=address)
    return bytes(network / tcp / Raw(data))


@pytest.mark.parametrize("options", [True, False])
@pytest.mark.parametrize("address", ["198.51.100.9", "2001:db8::9"])
def test_a_segment_is_read_whatever_its_headers(address: str, options: bool) -> None:
    """N10, N12: as scapy makes it."""
    found = parse_segment(packet(b"payload", address=address, sequence=77, options=options))

    assert found is not None
    assert found.destination == Endpoint.of(address, 443)
    assert found.source.port == CLIENT.port
    assert (found.sequence, found.data) == (77, b"payload")


def test_other_packets_are_no_segments() -> None:
    """N10: a rule that changes must not make the agent guess."""
    udp = bytes(IP() / UDP(sport=53, dport=5353) / Raw(b"answer"))

    assert parse_segment(udp) is None
    assert parse_datagram(udp) == b"answer"
    assert parse_datagram(bytes(IPv6() / UDP(sport=53) / Raw(b"answer"))) == b"answer"
    assert parse_datagram(packet(b"x")) is None


@given(st.binary(max_size=200))
def test_whatever_is_logged_raises_nothing(data: bytes) -> None:
    """I8: packets are anybody's."""
    parse_segment(data)
    parse_datagram(data)
    parse_logged(data)
    Watched().watch.heard(Logged(prefix=OWN, packet=data))


def test_several_messages_are_read_out_of_one_datagram() -> None:
    """N10: linux/netfilter/nfnetlink_log.h; other kinds of messages are left out."""

    def message(kind: int, payload: bytes) -> bytes:
        attributes = struct.pack("=HH", 4 + 6, 10) + b"tide\0\0" + bytes(2)
        attributes += struct.pack("=HH", 4 + len(payload), 9) + payload + bytes(-len(payload) % 4)
        body = struct.pack("!BBH", socket.AF_INET, 0, 7474) + attributes
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body

    data = message(4 << 8, b"abcde") + message(4 << 8 | 1, b"config") + message(4 << 8, b"f")
    assert [(each.prefix, each.packet) for each in parse_logged(data)] == [("tide", b"abcde"), ("tide", b"f")]


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"paused": True, "steering": False}, Cause.PAUSED),
        ({"steering": False}, Cause.NOT_STEERING),
        ({"forwarded": True}, Cause.FORWARDED),
        ({"known": False, "steered_for_s": None}, Cause.RESOLVED_ELSEWHERE),
        ({"steered_for_s": None}, Cause.NOT_LEARNED),
        ({"steered_for_s": 2.0}, Cause.NOT_LEARNED),
        ({}, Cause.NOT_REDIRECTED),
    ],
)
def test_the_cause_is_what_would_have_to_change_first(state: dict[str, bool], cause: Cause) -> None:
    """N10: in the order in which an operator would go about it."""
    usual = {"paused": False, "steering": True, "known": True, "steered_for_s": 100.0, "forwarded": False}

    assert why_bypassed(**(usual | state)) is cause  # type: ignore[arg-type]  # the table's values fit


class Watched:
    def __init__(self) -> None:
        self.bypassed: Counter[str] = Counter()
        self.asked: list[tuple[Endpoint, Endpoint]] = []
        self.watch = BypassWatch(
            bypassed=self.bypassed,
            steered=lambda host, port: (host, port) == ("ghcr.io", 443),
            why=self.why,
            who=self.who,
            now=lambda: NOON,
        )

    def why(self, segment: Segment, forwarded: bool) -> Cause:
        return Cause.FORWARDED if forwarded else Cause.RESOLVED_ELSEWHERE

    def who(self, peer: Endpoint, destination: Endpoint) -> tuple[str, int | None]:
        self.asked.append((peer, destination))
        return "/usr/bin/skopeo", 7

    def hear(self, data: bytes, *, prefix: str = OWN) -> None:
        self.watch.heard(Logged(prefix=prefix, packet=data))


def test_a_registrys_name_counts_once_however_often_it_is_sent_again() -> None:
    """N10: a segment that is not acknowledged is sent again; another connection is another."""
    watched = Watched()
    watched.hear(packet(hello("ghcr.io")))
    watched.hear(packet(hello("ghcr.io")))
    assert watched.bypassed == {"resolved_elsewhere": 1}
    (recent,) = watched.watch.recent
    assert (recent.host, recent.address, recent.pid) == ("ghcr.io", Endpoint.of("198.51.100.9", 443), 7)
    assert watched.asked == [(CLIENT, recent.address)]

    watched.hear(packet(hello("ghcr.io"), sequence=2))
    watched.hear(packet(hello("ghcr.io"), sequence=3), prefix=FORWARDED)
    assert watched.bypassed == {"resolved_elsewhere": 2, "forwarded": 1}
    assert [each.cause for each in watched.watch.recent] == ["forwarded", *["resolved_elsewhere"] * 2]


@pytest.mark.parametrize(
    "data",
    [
        packet(hello("www.example.org")),
        packet(hello("ghcr.io"), port=8443),
        packet(hello("ghcr.io"), address="127.0.0.1"),
        packet(hello("ghcr.io")[:60]),
        packet(b"GET / HTTP/1.1\r\n\r\n"),
        packet(b""),
    ],
    ids=["another name", "another port", "loopback", "half a hello", "no TLS", "nothing"],
)
def test_what_is_no_registrys_is_not_looked_into(data: bytes) -> None:
    """N10: nobody is asked for, nothing is kept."""
    watched = Watched()
    watched.hear(data)

    assert (watched.bypassed, watched.asked, watched.watch.recent) == ({}, [], ())


def test_the_last_few_are_kept_and_no_more() -> None:
    """I8: however many there are."""
    watched = Watched()
    said = hello("ghcr.io")
    for sequence in range(1000):
        watched.hear(packet(said, sequence=sequence))

    assert watched.bypassed["resolved_elsewhere"] == 1000
    assert len(watched.watch.recent) == 16


def test_a_connection_that_is_left_alone_counts_with_its_reason() -> None:
    """N10, N9: and the answer is passed on as it is."""
    watched = Watched()
    arrival = Arrival(sni="ghcr.io", original=Endpoint.of("198.51.100.9", 443), peer=CLIENT)

    assert watched.watch.noted(lambda _: None)(arrival) is None
    assert watched.bypassed == {}
    assert watched.watch.noted(lambda _: "other_store")(arrival) == "other_store"
    assert watched.bypassed == {"other_store": 1}
    assert watched.watch.recent[0].host == "ghcr.io"
