"""A corpus of questions and answers, asked of a resolver directly and through the agent and its real rules.

What is compared are octets. The rule for answers that the agent gives from memory: their TTLs are less by the
seconds that have passed (RFC 1035 section 3.2.1), each query has its own id, and everything else is as the
resolver said it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dns_corpus
from dns_corpus import Pair, differs_only_in_ttls, pairs, replayer
from dns_corpus.types import HINTS
from lab import Agent, Lab, Node, until

STEERED, OTHER = "gcr.io", "c.example.org"
"""Below `*.gcr.io`: steered, and never asked for before. The rules tell it from the others by its name."""

ASKER = """
import json, pathlib, socket, struct, sys

def take(sock, length):
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise EOFError(data)
        data += piece
    return data

def ask(resolver, transport, query, count):
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((resolver, 53))
        try:
            if transport == "udp":
                sock.send(query)
                return [sock.recv(65535)]
            sock.sendall(struct.pack(">H", len(query)) + query)
            return [take(sock, *struct.unpack(">H", take(sock, 2))) for _ in range(count)]
        except (OSError, EOFError) as error:
            return [repr(error).encode()]

answers = []
for resolver, transport, query, count in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    answers.append([answer.hex() for answer in ask(resolver, transport, bytes.fromhex(query), count)])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def steered_pairs() -> list[Pair]:
    return pairs(STEERED)


@pytest.fixture(scope="module")
def other_pairs() -> list[Pair]:
    return pairs(OTHER)


@pytest.fixture
def replaying(lab: Lab, steered_pairs: list[Pair], other_pairs: list[Pair]) -> Iterator[Node]:
    """A host whose resolver replays the corpus, over both families; for other names it asks the lab's."""
    host = lab.add_node("replayer")
    host.write("/srv/pairs", replayer.written([*steered_pairs, *other_pairs]))
    script = str(Path(dns_corpus.__file__).with_name("replayer.py"))
    addresses = [str(interface.ip) for interface in host.interfaces]
    with host.spawn(
        [sys.executable, script, "/srv/pairs", str(lab.resolver.address), *addresses], log="replayer"
    ) as process:
        until(lambda: "listening" in process.log, "the replayer listens")
        lab.node.use_resolvers([interface.ip for interface in host.interfaces])
        yield host


def asked(
    node: Node, resolver: str, transport: str, corpus: list[Pair], *, first_id: int
) -> list[list[bytes]]:
    """The answers to each pair's query, with consecutive ids."""
    questions = []
    for number, each in enumerate(corpus):
        query = (first_id + number).to_bytes(2, "big") + each.query[2:]
        questions.append((resolver, transport, query.hex(), len(each.over_tcp)))
    node.write("/srv/questions", json.dumps(questions))
    printed = node.python(ASKER, "/srv/questions", timeout_s=100).or_raise().stdout
    return [[bytes.fromhex(answer) for answer in answers] for answers in json.loads(printed)]


def arrived(agent: Agent) -> int:
    return int(agent.status()["dns"]["queries"])


@pytest.mark.parametrize("version", [4, 6])
def test_the_corpus_comes_back_byte_for_byte(
    node: Node, replaying: Node, steered_pairs: list[Pair], other_pairs: list[Pair], version: int
) -> None:
    """N12, N13: steered names and others, over UDP and TCP, IPv4 and IPv6, whatever is asked and answered.

    The agent's count tells that the steered ones went through it, and over TCP all of them. What HTTPS
    records hint at is steered.
    """
    (resolver,) = (str(each.ip) for each in replaying.interfaces if each.version == version)
    both = [*steered_pairs, *other_pairs]
    assert len(steered_pairs) > 200
    direct = {
        transport: asked(node, resolver, transport, both, first_id=0x1000) for transport in ("udp", "tcp")
    }
    for each, told in zip(both, direct["udp"], strict=True):
        assert [answer[2:] for answer in told] == [each.over_udp[2:]], each.what  # the replayer's own test
    for each, told in zip(both, direct["tcp"], strict=True):
        assert [answer[2:] for answer in told] == [answer[2:] for answer in each.over_tcp], each.what
    node.install_trust()
    agent = node.start_agent().wait_steering()

    for transport, least in (("udp", len(steered_pairs) - 60), ("tcp", len(both))):
        before = arrived(agent)
        first = asked(node, resolver, transport, both, first_id=0x1000)
        for each, told, expected in zip(both, first, direct[transport], strict=True):
            assert told == expected, (transport, each.what)
        assert arrived(agent) - before >= least
        hits = agent.metrics()['tidegate_dns_queries_total{outcome="hit"}']
        again = asked(node, resolver, transport, both, first_id=0x3000)
        for number, (each, told, expected) in enumerate(zip(both, again, first, strict=True)):
            assert len(told) == len(expected), each.what
            for answer, earlier in zip(told, expected, strict=True):
                assert answer[:2] == (0x3000 + number).to_bytes(2, "big")
                assert differs_only_in_ttls(earlier, answer), (transport, each.what)
        from_memory = agent.metrics()['tidegate_dns_queries_total{outcome="hit"}'] - hits
        assert from_memory > 100
    for name, hint in zip(("steered4", "steered6"), HINTS, strict=True):
        listed = node.run(["nft", "list", "set", "inet", "tidegate", name]).or_raise().stdout
        assert f"{hint} . 443" in listed
