"""Who else lives on a registry's addresses: other names, other protocols, silence; and IPv6.

What a client experiences with the agent is compared with what it experienced without.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from lab import Agent, Lab, Node, Registry, Resolver, ask, until

SMALL_1 = "docker.io/library/small:1"
ORIGIN = "https://registry-1.docker.io"
SHARED = "eu.gcr.io"
"""Steered; its address is that of a host where no registry lives."""

BANNER = b"220 neighbour\r\n"

NEIGHBOUR = f"""
import hashlib, socket, threading

def serve(client):
    with client:
        client.sendall({BANNER!r})
        heard = hashlib.sha256()
        while data := client.recv(65536):
            heard.update(data)
            client.sendall(data)
        client.sendall(heard.hexdigest().encode())

server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

SPEAK = """
import hashlib, json, random, socket, sys, threading, time

address, say, filler, close, after_s = json.loads(sys.argv[1])
say = bytes.fromhex(say) + random.Random(7).randbytes(filler)
began = time.monotonic()
first = None
heard = bytearray()
with socket.create_connection((address, 443), timeout=10) as sock:
    def speak():
        time.sleep(after_s)
        sock.sendall(say)
        if close:
            sock.shutdown(socket.SHUT_WR)
    threading.Thread(target=speak).start()
    try:
        while data := sock.recv(65536):
            first = first or time.monotonic() - began
            heard += data
        ended = "closed"
    except OSError as error:
        ended = type(error).__name__
print(json.dumps([len(heard), hashlib.sha256(heard).hexdigest(), heard[:80].hex(), ended, first]))
"""

HANDSHAKE = """
import hashlib, socket, ssl, sys

address, sni = sys.argv[1:]
context = ssl._create_unverified_context()
with socket.create_connection((address, 443), timeout=10) as sock:
    with context.wrap_socket(sock, server_hostname=sni or None) as tls:
        print(hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest())
        tls.sendall(b"GET /hello HTTP/1.1\\r\\nHost: www.example.org\\r\\nConnection: close\\r\\n\\r\\n")
        print(b"".join(iter(lambda: tls.recv(65536), b"")).partition(b"\\r\\n\\r\\n")[2])
"""

Heard = tuple[int, str, str, str]


@pytest.fixture
def neighbour(lab: Lab, node: Node, resolver: Resolver) -> Iterator[Node]:
    """A host that says hello first, repeats what it hears, and ends with its digest."""
    neighbour = lab.add_node("neighbour")
    server = neighbour.spawn(["python3", "-c", NEIGHBOUR], log="neighbour")
    until(lambda: 443 in neighbour.listening(), "the neighbour listens")
    addresses = [interface.ip for interface in neighbour.interfaces]
    resolver.answer(dual_stack=True, records={SHARED: addresses})
    yield neighbour
    assert server.running, server.log


def start_agent(node: Node) -> Agent:
    node.install_trust()
    agent = node.start_agent().wait_steering()
    node.run(["getent", "ahosts", SHARED])  # so that its addresses are steered
    return agent


def spoken(
    node: Node, address: object, say: bytes, *, filler: int = 0, close: bool = True, after_s: float = 0
) -> tuple[Heard, float | None]:
    """What a client heard that said this, how it ended, and when the first byte came."""
    argument = json.dumps([str(address), say.hex(), filler, close, after_s])
    length, digest, start, ended, first_s = json.loads(node.python(SPEAK, argument).or_raise().stdout)
    return (length, digest, start, ended), first_s


def spliced(agent: Agent, reason: str) -> float:
    return agent.metrics().get(f'tidegate_connections_total{{outcome="spliced",reason="{reason}"}}', 0)


# TLS for others


@pytest.mark.parametrize("sni", ["www.example.org", ""], ids=["another name", "no name"])
@pytest.mark.parametrize("version", [4, 6])
def test_another_name_on_the_registrys_address_meets_the_origin_itself(
    lab: Lab, node: Node, registry: Registry, resolver: Resolver, version: int, sni: str
) -> None:
    """N6, N12: the origin's own certificate and answer arrive, on the very address that is intercepted."""
    resolver.answer(dual_stack=True)
    (address,) = (a for a in registry.addresses["registry-1.docker.io"] if a.version == version)
    direct = node.python(HANDSHAKE, str(address), sni).or_raise().stdout
    agent = start_agent(node)
    reason = "other_sni" if sni else "no_sni"
    before = spliced(agent, reason)

    through = node.python(HANDSHAKE, str(address), sni).or_raise().stdout

    pem = lab.internet.path("/etc/lab/server.crt").read_text()
    first = pem[: pem.index("-----END")] + "-----END CERTIFICATE-----\n"
    origins = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    assert through == direct
    assert through.splitlines()[0] == origins
    assert "no such host in the lab" in through
    assert spliced(agent, reason) == before + 1
    ours = node.python(HANDSHAKE, str(address), "registry-1.docker.io").or_raise().stdout
    assert ours.splitlines()[0] != origins


@pytest.mark.parametrize("host", ["quay.io", "www.example.org", "registry-1.docker.io:444"])
def test_a_request_for_another_host_than_the_connections_is_misdirected(
    node: Node, registry: Registry, host: str
) -> None:
    """DESIGN 2, step 5: 421 (RFC 9110, 15.5.20), and nobody is asked in the other host's name."""
    start_agent(node)
    registry.forget()

    assert ask(node, f"{ORIGIN}/v2/", "--header", f"Host: {host}").status == 421
    assert registry.requests == []
    assert ask(node, f"{ORIGIN}/v2/", "--header", "Host: registry-1.docker.io:443").status == 401


# No TLS at all

HELLO_START = bytes.fromhex("16030100c8010000c40303") + bytes(40)  # announces 200 bytes, brings 46
SPEECHES = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: registry-1.docker.io\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "garbage": bytes(range(255, -1, -1)) * 4,
    "one byte": b"\x16",
    "half a ClientHello": HELLO_START,
    "TLS that is no handshake": bytes.fromhex("15030100020228"),
    "nothing": b"",
}


@pytest.mark.parametrize(
    ("version", "speech"), [*((4, speech) for speech in SPEECHES), (6, "plain HTTP"), (6, "nothing")]
)
def test_what_is_no_tls_goes_on_byte_for_byte(node: Node, neighbour: Node, version: int, speech: str) -> None:
    """N6: whoever does not start a TLS handshake is spliced: each byte both ways, and both ends."""
    (address,) = (interface.ip for interface in neighbour.interfaces if interface.version == version)
    said = SPEECHES[speech]
    direct, _ = spoken(node, address, said)
    agent = start_agent(node)

    through, _ = spoken(node, address, said)

    told = BANNER + said + hashlib.sha256(said).hexdigest().encode()
    assert through == direct
    assert through == (len(told), hashlib.sha256(told).hexdigest(), told[:80].hex(), "closed")
    assert sum(spliced(agent, reason) for reason in ("not_tls", "silent", "incomplete")) == 1


def test_many_bytes_pass_whole_in_both_directions(node: Node, neighbour: Node) -> None:
    """N6, I8: more than any buffer of ours, while the other side speaks as well."""
    address = neighbour.interfaces[0].ip
    direct, _ = spoken(node, address, b"\0", filler=20_000_000)
    agent = start_agent(node)

    through, _ = spoken(node, address, b"\0", filler=20_000_000)

    assert direct[0] == len(BANNER) + 20_000_001 + 64
    assert through == direct
    assert spliced(agent, "not_tls") == 1


def test_a_silent_client_hears_the_server_speak_first(node: Node, neighbour: Node) -> None:
    """N6: after the time-out it is spliced; the banner arrives before the client has said a word."""
    address = neighbour.interfaces[0].ip
    agent = start_agent(node)

    through, first_s = spoken(node, address, b"EHLO node\r\n", after_s=4)

    told = BANNER + b"EHLO node\r\n" + hashlib.sha256(b"EHLO node\r\n").hexdigest().encode()
    assert through == (len(told), hashlib.sha256(told).hexdigest(), told[:80].hex(), "closed")
    assert first_s is not None
    assert first_s < 4
    assert spliced(agent, "silent") == 1


def test_plain_http_on_the_registrys_own_port_is_answered_as_without_us(
    node: Node, registry: Registry, neighbour: Node
) -> None:
    """N6: whatever a TLS server says to that."""
    address = registry.addresses["registry-1.docker.io"][0]
    direct, _ = spoken(node, address, SPEECHES["plain HTTP"], close=False)
    start_agent(node)

    through, _ = spoken(node, address, SPEECHES["plain HTTP"], close=False)

    assert through == direct


def test_nobody_there_is_nobody_there_through_the_agent_too(
    node: Node, resolver: Resolver, registry: Registry
) -> None:
    """N6, I1: a connection that cannot be spliced on ends at once, like one that was refused."""
    resolver.answer(records={SHARED: [IPv4Address("10.77.0.1")]})  # the switch: no one listens
    start_agent(node)

    began = time.monotonic()
    through, _ = spoken(node, "10.77.0.1", b"hello", close=False)

    assert time.monotonic() - began < 5
    assert through[0] == 0
    assert through[3] == "ConnectionResetError"


# IPv6


@pytest.mark.parametrize(("first", "second"), [("skopeo", "podman"), ("podman", "skopeo")])
def test_a_pull_over_ipv6_is_steered_cached_and_served_in_the_dark(
    lab: Lab, node: Node, registry: Registry, resolver: Resolver, first: str, second: str
) -> None:
    """N12, C2, C7: a node whose only way out is IPv6, its resolver's address included."""
    resolver.answer(dual_stack=True)
    node.use_resolvers([address for address in resolver.addresses if isinstance(address, IPv6Address)])
    node.run(["ip", "-4", "route", "del", "default"]).or_raise()
    image = lab.images[SMALL_1]
    agent = start_agent(node)
    registry.forget()

    assert node.pull(first, SMALL_1).contents == image.contents

    assert registry.connections
    assert {connection.peer[0] for connection in registry.connections} == {str(node.interfaces[1].ip)}
    assert agent.status()["cache"]["blobs"] == len(image.contents.layers) + 3
    registry.goes_dark()
    resolver.goes_dark()
    registry.forget()
    assert node.pull(second, SMALL_1).contents == image.contents
    assert registry.connections == []


def test_a_dual_stack_node_is_steered_in_both_families(
    node: Node, registry: Registry, resolver: Resolver
) -> None:
    """N12: whichever address a client picks, it meets the agent."""
    resolver.answer(dual_stack=True)
    start_agent(node)

    for family in ("--ipv4", "--ipv6"):
        assert ask(node, f"{ORIGIN}/v2/", family).cache == "bypass"
