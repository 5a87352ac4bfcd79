"""Names on a node with an agent: other names as if there were none, steered names however they are asked.

Answers are compared as raw bytes, through the real rules and a real resolver whose TTLs are fixed.
"""

from __future__ import annotations

import json
import re
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from dnslib import DNSRecord

from lab import Agent, Lab, Node, Resolver, ask, until
from lab.resolver import DOMAIN, HOST, LARGE_TXT, MISSING, SERVFAIL

WILD = "eu.gcr.io"
"""Below `*.gcr.io`: steered, but not known before somebody asks."""

NFT = '[steering]\nbackend = "nft"\n'
"""The back end whose sets `steered` can read."""

ASKER = """
import json, socket, struct, sys

def take(sock, length):
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise EOFError(data)
        data += piece
    return data

def ask(resolver, transport, queries):
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        if transport.isdigit():  # the responder's own port: what comes back bears the resolver's address
            answers = []
            for query in queries:
                sock.sendto(query, ("::1" if family == socket.AF_INET6 else "127.0.0.1", int(transport)))
                answer, told_by = sock.recvfrom(65535)
                assert told_by[:2] == (resolver, 53), told_by
                answers.append(answer)
            return answers
        sock.connect((resolver, 53))
        if transport == "tcp":
            sock.sendall(b"".join(struct.pack(">H", len(query)) + query for query in queries))
            try:
                return [take(sock, *struct.unpack(">H", take(sock, 2))) for _ in queries]
            except EOFError:
                return [b"closed"]
        answers = []
        for query in queries:
            sock.send(query)
            answers.append(sock.recv(65535))
        return answers

for line in sys.argv[1:]:
    resolver, transport, queries = json.loads(line)
    answers = ask(resolver, transport, [bytes.fromhex(query) for query in queries])
    print(json.dumps([answer.hex() for answer in answers]))
"""


def query(name: str, qtype: str = "A", *, edns: bytes = b"", id_: int = 0x7A11) -> bytes:
    """A recursive query with a fixed id; `edns` is an OPT record (RFC 6891 section 6.1)."""
    message = DNSRecord.question(name, qtype)
    message.header.id = id_
    packed = bytes(message.pack())
    return packed[:11] + b"\x01" + packed[12:] + edns if edns else packed


def opt(*, size: int, flags: int = 0, options: bytes = b"") -> bytes:
    return struct.pack(">BHHIH", 0, 41, size, flags, len(options)) + options


DNSSEC_OK = opt(size=1232, flags=0x8000)
COOKIE = opt(size=4096, options=b"\x00\x0a\x00\x08tidegate")

OTHER_NAMES = {
    "A": query(HOST),
    "AAAA": query(HOST, "AAAA"),
    "MX": query(DOMAIN, "MX"),
    "TXT": query(DOMAIN, "TXT"),
    "NODATA": query(DOMAIN, "SRV"),
    "NXDOMAIN": query(MISSING),
    "SERVFAIL": query(SERVFAIL),
    "4 KB, truncated over UDP": query(LARGE_TXT, "TXT"),
    "4 KB, a large EDNS buffer": query(LARGE_TXT, "TXT", edns=opt(size=4096)),
    "EDNS, DO": query(HOST, edns=DNSSEC_OK),
    "EDNS, DO, NXDOMAIN": query(MISSING, "AAAA", edns=DNSSEC_OK),
    "EDNS, a cookie": query(DOMAIN, "MX", edns=COOKIE),
    "mixed case": query("wWw.eXample.ORG"),
    "HTTPS": query(HOST, "HTTPS"),
    "PTR": query("99.113.0.203.in-addr.arpa", "PTR"),
    "below a steered one": query("deep.registry-1.docker.io"),
    "above a steered one": query("docker.io", "TXT"),
}

ALIAS = "registry-1.docket.example.org"
LIKE_STEERED = {
    "A": query(ALIAS),
    "AAAA": query(ALIAS, "AAAA", edns=COOKIE),
    "mixed case": query("rEgIsTrY-1.dOcKeT.eXaMpLe.OrG"),
    "NODATA": query(ALIAS, "MX", edns=DNSSEC_OK),
    "NXDOMAIN": query("registry-1.docker.io.example.org"),
}
"""The rules compare as much of these as of registry-1.docker.io, and cannot tell them apart."""


def asked(node: Node, *questions: tuple[str, str, list[bytes]]) -> list[list[bytes]]:
    """The raw answers to (resolver, transport, queries): TCP queries go down one connection, pipelined.

    A transport that is a port goes over UDP to that port of this host instead of the resolver.
    """
    lines = [json.dumps([to, over, [each.hex() for each in queries]]) for to, over, queries in questions]
    printed = node.python(ASKER, *lines).or_raise().stdout.splitlines()
    return [[bytes.fromhex(answer) for answer in json.loads(line)] for line in printed]


def responder_ports(node: Node) -> dict[str, str]:
    """Where the responder hears each resolver's queries."""
    rules = node.run(["nft", "list", "chain", "inet", "tidegate", "queries"]).or_raise().stdout
    return dict(re.findall(r"daddr (\S+) udp dport 53 .* udp dport set (\d+)", rules))


def forwarded(agent: Agent) -> float:
    return agent.metrics()['tidegate_dns_queries_total{outcome="forwarded"}']


def steered(node: Node) -> set[str]:
    """The elements of the steering sets, as `address . port`."""
    found = set()
    for name in ("steered4", "steered6"):
        listing = node.run(["nft", "-j", "list", "set", "inet", "tidegate", name]).or_raise().stdout
        for element in json.loads(listing)["nftables"][-1]["set"].get("elem", []):
            address, port = element["elem"]["val"]["concat"]
            found.add(f"{address} . {port}")
    return found


@pytest.fixture
def dual_stack(lab: Lab, node: Node, resolver: Resolver) -> Resolver:
    """Names have AAAA records, one more registry has an address, and the node has two resolvers."""
    elsewhere: list[IPv4Address | IPv6Address] = [IPv4Address("203.0.113.99"), IPv6Address("2001:db8:cd::63")]
    resolver.answer(dual_stack=True, records={WILD: elsewhere, ALIAS: elsewhere})
    node.use_resolvers(resolver.addresses)
    return resolver


def questions(
    resolver: Resolver, transport: str, queries: dict[str, bytes]
) -> list[tuple[str, str, list[bytes]]]:
    return [(str(address), transport, [each]) for address in resolver.addresses for each in queries.values()]


def start_agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent(NFT).wait_steering()


def test_other_names_resolve_to_the_same_bytes(node: Node, dual_stack: Resolver) -> None:
    """N13: over UDP and TCP, IPv4 and IPv6, what a resolver says of other names arrives untouched.

    The agent's own count tells that all queries over TCP went through it, and over UDP only those whose name
    begins as a steered one does.
    """
    direct = {
        transport: asked(node, *questions(dual_stack, transport, OTHER_NAMES | LIKE_STEERED))
        for transport in ("udp", "tcp")
    }
    agent = start_agent(node)

    for transport, taken in (("udp", LIKE_STEERED), ("tcp", OTHER_NAMES | LIKE_STEERED)):
        before = forwarded(agent)
        asking = questions(dual_stack, transport, OTHER_NAMES | LIKE_STEERED)
        for question, told, expected in zip(asking, asked(node, *asking), direct[transport], strict=True):
            assert told == expected, question
        assert forwarded(agent) - before == len(questions(dual_stack, transport, taken))


def test_the_responder_forwards_every_question_that_reaches_it(node: Node, dual_stack: Resolver) -> None:
    """N13: whatever a way of steering sends it; asked here at its own ports, past the rules."""
    asking = questions(dual_stack, "udp", OTHER_NAMES | LIKE_STEERED)
    direct = asked(node, *asking)
    agent = start_agent(node)
    ports = responder_ports(node)
    assert set(ports) == {str(address) for address in dual_stack.addresses}
    before = forwarded(agent)

    through = asked(node, *((resolver, ports[resolver], queries) for resolver, _, queries in asking))

    for question, told, expected in zip(asking, through, direct, strict=True):
        assert told == expected, question
    assert forwarded(agent) - before == len(asking)
    assert "203.0.113.99 . 443" not in steered(node)


def test_the_answers_compared_are_of_every_kind(node: Node, dual_stack: Resolver) -> None:
    """N13: or the comparison would prove nothing."""
    resolver = str(dual_stack.address)
    over_udp, over_tcp = (
        {
            name: DNSRecord.parse(answers[0])
            for name, answers in zip(
                OTHER_NAMES,
                asked(node, *((resolver, transport, [query]) for query in OTHER_NAMES.values())),
                strict=True,
            )
            if answers != [b"closed"]
        }
        for transport in ("udp", "tcp")
    )

    assert [over_udp[name].header.rcode for name in ("NODATA", "NXDOMAIN", "SERVFAIL")] == [0, 3, 2]
    assert not over_udp["NODATA"].rr
    assert all(over_udp[name].rr for name in ("A", "AAAA", "MX", "TXT"))
    large = "4 KB, truncated over UDP"
    assert over_udp[large].header.tc
    assert not over_tcp[large].header.tc
    assert len(over_tcp[large].pack()) > 4000
    assert over_udp["EDNS, DO"].ar[0].edns_do
    assert "SERVFAIL" not in over_tcp  # its server speaks UDP only: dnsmasq closes the connection


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_name_is_steered_however_it_is_asked(
    node: Node, dual_stack: Resolver, version: int, transport: str
) -> None:
    """N2, N12: both families' addresses are in the sets when the answer comes, with the registry's port."""
    start_agent(node)
    (resolver,) = (str(address) for address in dual_stack.addresses if address.version == version)
    assert not {element for element in steered(node) if ".99 " in element or "cd::63" in element}

    ((a, aaaa),) = asked(node, (resolver, transport, [query(WILD), query(WILD, "AAAA", edns=DNSSEC_OK)]))

    assert {"203.0.113.99 . 443", "2001:db8:cd::63 . 443"} <= steered(node)
    assert [str(record.rdata) for record in DNSRecord.parse(a).rr] == ["203.0.113.99"]
    assert [str(record.rdata) for record in DNSRecord.parse(aaaa).rr] == ["2001:db8:cd::63"]


def test_a_client_that_knows_the_address_already_is_steered(node: Node, lab: Lab) -> None:
    """N1, DESIGN 4: exact names are looked up ahead, so no query is needed."""
    start_agent(node)
    address = str(lab.registry.addresses["registry-1.docker.io"][0])
    until(lambda: f"{address} . 443" in steered(node), "the name's address is steered")
    lab.resolver.goes_dark()

    answer = ask(node, "https://registry-1.docker.io/v2/", "--resolve", f"registry-1.docker.io:443:{address}")

    assert answer.status == 401
    assert answer.cache == "bypass"


def test_new_resolvers_are_followed_and_old_ones_left_alone(node: Node, dual_stack: Resolver) -> None:
    """N2, I4: after a change of resolv.conf its resolvers are steered, and the former ones asked directly."""
    v4, v6 = (str(address) for address in dual_stack.addresses)
    node.use_resolvers(dual_stack.addresses[:1])
    agent = start_agent(node)
    assert agent.status()["dns"]["resolvers"] == [v4]

    node.use_resolvers(dual_stack.addresses[1:])
    until(lambda: agent.status()["dns"]["resolvers"] == [v6], "the new resolver is followed")

    before = agent.status()["dns"]["queries"]
    asked(node, (v4, "udp", [query(WILD)]), (v4, "tcp", [query(WILD)]))
    assert "203.0.113.99 . 443" not in steered(node)
    ((answer,),) = asked(node, (v6, "udp", [query(WILD)]))
    assert DNSRecord.parse(answer).rr
    assert "203.0.113.99 . 443" in steered(node)
    assert agent.status()["dns"]["queries"] > before


def test_resolv_conf_is_never_touched(node: Node) -> None:
    """N2, I4: neither while the agent runs nor after."""
    before = node.changed_files()["/etc/resolv.conf"]
    agent = start_agent(node)
    assert node.changed_files()["/etc/resolv.conf"] == before
    assert agent.stop() == 0

    assert node.changed_files()["/etc/resolv.conf"] == before
