"""Answers forged by another host of the same network, which sends them under the resolver's address.

The forger knows the question, and whichever of our port and id a test tells it: what the others are worth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

import pytest

from lab import Agent, Lab, Node, Process, until

NAME = "fresh.gcr.io"
"""Below `*.gcr.io`: steered, and nobody has asked for it."""

TRUE, FORGED = "203.0.113.70", "203.0.113.66"

HOLDING = """
import json, socket, sys

address, upstream, true = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
print("listening", flush=True)
held = None
while True:
    query, client = server.recvfrom(4096)
    if query == b"release":
        answer = held[0][:2] + b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + held[0][12:]
        answer += b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\1\\x2c\\0\\4" + socket.inet_aton(true)
        server.sendto(answer, held[1])
    elif b"\\x05fresh" in query:
        held = query, client
        print("held " + json.dumps([query.hex(), client[1]]), flush=True)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            elsewhere.settimeout(2)
            elsewhere.connect((upstream, 53))
            elsewhere.send(query)
            server.sendto(elsewhere.recv(4096), client)
"""
"""A resolver that keeps one name's question until it is told to answer; others it asks of another one."""

FORGER = """
import json, socket, struct, sys

raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for source, source_port, target, target_port, message in json.loads(sys.argv[1]):
    message = bytes.fromhex(message)
    udp = struct.pack("!4H", source_port, target_port, 8 + len(message), 0) + message
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    raw.sendto(head + udp, (target, 0))
"""

ASKER = """
import socket, struct, sys
query = bytes.fromhex(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(30)
    sock.connect((sys.argv[1], 53))
    sock.send(query)
    print("answer " + sock.recv(4096).hex(), flush=True)
"""

RELEASE = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"release", (sys.argv[1], 53))
"""


class Scene:
    """A node that waits for its resolver's answer, and a host that would like to give it instead."""

    def __init__(self, lab: Lab, node: Node, holder: Node, forger: Node, holding: Process):
        self._node, self._holder, self._forger, self._holding = node, holder, forger, holding
        self._resolver, self._target = str(holder.interfaces[0].ip), str(node.interfaces[0].ip)
        self._elsewhere = str(forger.interfaces[0].ip)

    def ask(self) -> Process:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
        query = b"\x7a\x11\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
        asking = self._node.spawn([sys.executable, "-c", ASKER, self._resolver, query.hex()], log="asker")
        until(lambda: "held " in self._holding.log, "the resolver has the question")
        (line,) = [line for line in self._holding.log.splitlines() if line.startswith("held ")]
        held, self.port = json.loads(line.removeprefix("held "))
        self.query = bytes.fromhex(held)
        return asking

    def forge(
        self,
        *,
        id_: int | None = None,
        port: int | None = None,
        source: str = "",
        source_port: int = 53,
        flags: int = 0x8180,
        name: str = NAME,
    ) -> tuple[str, int, str, int, str]:
        """An answer that is right in all that is not given."""
        id_ = int.from_bytes(self.query[:2], "big") if id_ is None else id_ & 0xFFFF
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        message = id_.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\0\1\0\1\0\0\0\0"
        message += labels + b"\0\0\1\0\1\xc0\x0c\0\1\0\1\0\0\1\x2c\0\4" + bytes(map(int, FORGED.split(".")))
        port = self.port if port is None else port & 0xFFFF
        return source or self._resolver, source_port, self._target, port, message.hex()

    def send(self, *forged: tuple[str, int, str, int, str]) -> None:
        for start in range(0, len(forged), 300):
            self._forger.python(FORGER, json.dumps(forged[start : start + 300])).or_raise()

    def release(self) -> None:
        self._holder.python(RELEASE, self._resolver).or_raise()

    @property
    def elsewhere(self) -> str:
        """The forger's own address."""
        return self._elsewhere


@pytest.fixture
def scene(lab: Lab, node: Node) -> Iterator[Scene]:
    holder, forger = lab.add_node("holder"), lab.add_node("forger")
    address = str(holder.interfaces[0].ip)
    with holder.spawn(
        [sys.executable, "-c", HOLDING, address, str(lab.resolver.address), TRUE], log="holding"
    ) as holding:
        until(lambda: "listening" in holding.log, "the resolver listens")
        node.use_resolvers([holder.interfaces[0].ip])
        yield Scene(lab, node, holder, forger, holding)


def start(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def told(asking: Process) -> str:
    until(lambda: "answer " in asking.log, "the client has an answer", within_s=30)
    answer = bytes.fromhex(asking.log.split()[1])
    assert answer[:2] == b"\x7a\x11"
    return ".".join(str(octet) for octet in answer[-4:])


def is_steered(node: Node, address: str) -> bool:
    return f"{address} . 443" in node.run(["nft", "list", "set", "inet", "tidegate", "steered4"]).stdout


def test_what_is_forged_with_anything_wrong_is_not_taken(node: Node, scene: Scene) -> None:
    """N13, RFC 5452 section 9.1: source address and port, our port, id, question and kind all have to be."""
    start(node)
    asking = scene.ask()
    id_ = int.from_bytes(scene.query[:2], "big")
    wrong: Mapping[str, list[tuple[str, int, str, int, str]]] = {
        "ids": [scene.forge(id_=id_ ^ bit) for bit in (1, 0x8000, *range(2, 300))],
        "the client's id": [scene.forge(id_=0x7A11)] if id_ != 0x7A11 else [],
        "ports": [scene.forge(port=scene.port ^ bit) for bit in range(1, 300)],
        "source address": [scene.forge(source=scene.elsewhere)],
        "source port": [scene.forge(source_port=port) for port in (5353, 1024, 54)],
        "question": [scene.forge(name=name) for name in ("other.gcr.io", "gcr.io", "fresh.gcr.com")],
        "kind": [scene.forge(flags=flags) for flags in (0x0100, 0xA180)],
    }
    scene.send(*(packet for forged in wrong.values() for packet in forged))  # within a look-up's ten seconds
    scene.release()

    assert told(asking) == TRUE
    assert is_steered(node, TRUE)
    assert not is_steered(node, FORGED)


def test_a_forger_who_knows_everything_is_believed(node: Node, scene: Scene) -> None:
    """RFC 5452: or the test above would prove nothing. Against who sees our packets only DNSSEC helps."""
    start(node)
    asking = scene.ask()
    scene.send(scene.forge())

    assert told(asking) == FORGED
    assert is_steered(node, FORGED)
