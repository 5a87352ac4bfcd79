"""Resolvers of both families, link-local ones included (N12), and a real dnsmasq (N13)."""

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from dnslib import EDNS0, DNSRecord

from contract.dns.scripted import (
    REGISTRY,
    Node,
    ScriptedResolver,
    UdpClient,
    answer,
    eventually,
    framed,
    question,
    read_framed,
)
from tidegate_dns.address import LearnedAddress, connect, exempt_tcp_socket
from tidegate_dns.lookup import Lookup
from tidegate_dns.policy import PROBE_ADDRESS

CLONE_NEWNET = 0x40000000


def has_loopback6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


async def _serves_both_transports(address: str) -> None:
    resolver = await ScriptedResolver(
        lambda query: answer(query, "192.0.2.7", "2001:db8::7"), address
    ).start()
    node = await Node(resolver).start()
    expected = answer(question(), "192.0.2.7", "2001:db8::7")
    try:
        assert node.loopback == "::1"
        assert await node.ask(question()) == expected
        assert await node.ask_tcp(question()) == expected
        assert node.learned_addresses() == {"192.0.2.7", "2001:db8::7"}
        node.clock.forward(3000)
        await resolver.stop()
        stale = answer(question(), "192.0.2.7", "2001:db8::7", ttl=30)
        assert await node.ask(question()) == stale
        assert await node.ask_tcp(question()) == stale
    finally:
        await node.responder.close()
        await resolver.stop()


LINK = ["ip link set lo up", "ip link add lan0 type veth peer name lan1", "ip link set lan1 up"]
LINK += ["ip addr add fe80::1/64 dev lan1 nodad", "ip addr add fe80::2/64 dev lan0 nodad"]
LINK += ["ip link set lan0 up"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own takes root")
@pytest.mark.parametrize("scope", ["lan1", "number"])
def test_a_link_local_resolver_is_served_at_this_hosts_own_address_on_the_link(scope: str) -> None:
    """N12, I1: a client bound to lan1 does not reach ::1, but it does reach its own address there."""

    async def serve() -> None:
        zone = str(socket.if_nametoindex("lan1")) if scope == "number" else scope
        resolver = ScriptedResolver(lambda query: answer(query, "192.0.2.7"), f"fe80::1%{zone}")
        await resolver.start()
        node = await Node(resolver).start()
        try:
            (landing,) = node.responder.linked
            assert set(node.responder.udp_ports) == {PROBE_ADDRESS}
            assert landing.resolver == resolver.address
            assert landing.address.packed == ip_address("fe80::1").packed
            assert landing.interface == "lan1"
            with UdpClient(str(landing.address), landing.udp_port) as client:
                client.send(question())
                assert await client.receive() == answer(question(), "192.0.2.7")
            sock = exempt_tcp_socket(landing.address, lambda _: None)
            await connect(sock, landing.address, landing.tcp_port)
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(framed(question()))
            assert await read_framed(reader) == answer(question(), "192.0.2.7")
            writer.close()
            lookup = Lookup(
                [resolver.address], exempt=lambda _: None, clock=node.clock, resolver_port=resolver.port
            )
            assert LearnedAddress(ip_address("192.0.2.7"), 300) in await lookup.addresses("other.test")
        finally:
            await node.responder.close()
            await resolver.stop()

    _in_a_network_namespace(LINK, serve)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own takes root")
def test_a_links_new_address_is_followed_and_its_loss_named() -> None:
    """N12, I1: an address may change, an interface may go: nothing is sent where nobody listens."""

    async def serve() -> None:
        resolvers = [ip_address("fe80::9%lan0"), ip_address("fe80::9%lan7")]
        node = Node(ScriptedResolver(lambda _: None))
        await node.start()
        try:
            node.responder.set_resolvers(resolvers)
            (before,) = node.responder.linked
            assert str(before.address) == "fe80::2%lan0"
            assert node.responder.unserved == {resolvers[1]: "no interface with this name"}

            _run("ip addr add fe80::3/64 dev lan0 nodad", "ip addr del fe80::2/64 dev lan0")
            node.responder.set_resolvers(resolvers)
            (after,) = node.responder.linked
            assert str(after.address) == "fe80::3%lan0"
            assert before in node.responder.leaving

            _run("ip link del lan0")
            node.responder.set_resolvers(resolvers)
            assert node.responder.linked == ()
            assert set(node.responder.unserved) == set(resolvers)
            node.clock.forward(5)
            assert node.responder.leaving == ()
        finally:
            await node.responder.close()

    _in_a_network_namespace(LINK, serve)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own takes root")
def test_a_host_without_ipv6_serves_its_ipv4_resolvers() -> None:
    """N12: a resolver that cannot be served is left out, and asked directly."""

    async def serve() -> None:
        resolver = await ScriptedResolver(lambda query: answer(query, "192.0.2.7")).start()
        node = await Node(resolver).start()
        try:
            served = node.responder.set_resolvers([resolver.address, ip_address("2001:db8::53")])
            assert ip_address("2001:db8::53") not in served
            assert await node.ask(question()) == answer(question(), "192.0.2.7")
            assert await node.ask_tcp(question()) == answer(question(), "192.0.2.7")
        finally:
            await node.responder.close()
            await resolver.stop()

    _in_a_network_namespace(["sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "ip link set lo up"], serve)


@pytest_asyncio.fixture
async def dnsmasq(tmp_path: Path) -> AsyncIterator[Node]:
    """A node before Debian's dnsmasq, which knows a few names and nothing else."""
    program = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("dnsmasq is not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.4", 0))
        port = free.getsockname()[1]
    config = tmp_path / "dnsmasq.conf"
    config.write_text(
        f"""
        port={port}
        listen-address=127.0.0.4
        bind-interfaces
        no-resolv
        no-hosts
        local=/test/
        host-record={REGISTRY},192.0.2.7,2001:db8::7,120
        cname=alias.wild.test,{REGISTRY},60
        mx-host=mail.test,mx.mail.test,10
        txt-record=text.test,plain
        """
    )
    options = ["--keep-in-foreground", f"--conf-file={config}", "--pid-file=", "--user=root"]
    options += [f"--txt-record=large.test,{','.join(['y' * 250] * 17)}"]  # too long for a line of the file
    process = subprocess.Popen([program, *options], stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        resolver = ScriptedResolver(lambda _: None, "127.0.0.4", port)
        direct = UdpClient("127.0.0.4", port)
        with direct:
            await eventually(lambda: _asked(direct))
        node = await Node(resolver).start()
        yield node
        await node.responder.close()
    finally:
        process.terminate()
        process.wait(5)


async def test_dnsmasqs_answers_are_the_same_with_and_without_us(dnsmasq: Node) -> None:
    """N13: by bytes, for what a host asks in a day; truncated over UDP, whole over TCP."""
    asked = [
        *((REGISTRY, "A"), (REGISTRY, "AAAA"), ("alias.wild.test", "A"), ("mail.test", "MX")),
        *(("text.test", "TXT"), ("text.test", "A"), ("no.test", "A"), ("elsewhere.example", "A")),
        ("large.test", "TXT"),
    ]
    for name, rrtype in asked:
        plain = question(name, rrtype)
        edns = DNSRecord.parse(plain)
        edns.add_ar(EDNS0(flags="do", udp_len=4096))
        for query in (plain, bytes(edns.pack())):
            with UdpClient("127.0.0.4", dnsmasq.resolver.port) as client:
                client.send(query)
                directly = await client.receive()
            assert await dnsmasq.ask(query) == directly, (name, rrtype)
            reader, writer = await asyncio.open_connection("127.0.0.4", dnsmasq.resolver.port)
            writer.write(framed(query))
            directly = await read_framed(reader)
            writer.close()
            assert await dnsmasq.ask_tcp(query) == directly, (name, rrtype)

    assert len(directly) > 4096
    assert dnsmasq.learned_addresses() == {"192.0.2.7", "2001:db8::7"}


def _asked(client: UdpClient) -> bool:
    try:
        client.send(question("text.test", "TXT"))
    except ConnectionRefusedError:
        return False
    try:
        return not client.has_nothing()
    except ConnectionRefusedError:
        return False


def _run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def _in_a_network_namespace(
    set_up: list[str], scenario: Callable[[], Coroutine[object, object, None]]
) -> None:
    """Run a scenario in a thread with a namespace of its own, which ends with it."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            _run(*set_up)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # production's
                runner.run(scenario())
        except BaseException as failure:  # noqa: BLE001  # carried to the test's own thread
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
