"""Neighbours on a registry's address and their connections: whole, idle for ever, not ours to end. N6, I8.

What they hold outlives the agent's stop: a process that is nothing else any more carries it on.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address

import pytest

from lab import Agent, Lab, Node, Process, Resolver, until
from lab.footprint import Footprint

SMALL = "docker.io/library/small:1"
LARGE = "docker.io/library/large:1"
SHARED = "eu.gcr.io"
"""Steered; its address is the neighbour's too."""
NEIGHBOUR = "neighbour.example"
KEEPER = "table inet tidegate_keeper"
DRAIN_S = 30
MIB = 1 << 20
BLOCK = random.Random(7).randbytes(MIB)

SERVER = """
import hashlib, random, socket, ssl, sys, threading

block = random.Random(7).randbytes(1 << 20)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/neighbour.crt", "/etc/neighbour.key")

def serve(raw):
    with context.wrap_socket(raw, server_side=True) as tls:
        stream = tls.makefile("rwb")
        for line in stream:
            word, rest = line.decode().split()
            if word == "echo":
                stream.write(rest.encode() + b"\\n")
            elif word == "send":
                for _ in range(int(rest)):
                    stream.write(block)
            elif word == "take":
                heard = hashlib.sha256()
                for _ in range(int(rest)):
                    heard.update(stream.read(1 << 20))
                stream.write(heard.hexdigest().encode() + b"\\n")
            stream.flush()

server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

# A client of the registry that stops reading in the middle of a layer, so that the agent has to cut it.
STALLED = """
import json, socket, ssl, sys, time, urllib.request
repository, digest = sys.argv[1:]
scope = f"https://auth.docker.io/token?service=registry.docker.io&scope=repository:{repository}:pull"
token = json.load(urllib.request.urlopen(scope))["token"]
plain = socket.create_connection(("registry-1.docker.io", 443))
tls = ssl.create_default_context().wrap_socket(plain, server_hostname="registry-1.docker.io")
head = f"GET /v2/{repository}/blobs/{digest} HTTP/1.1\\r\\nHost: registry-1.docker.io\\r\\n"
tls.sendall((head + f"Authorization: Bearer {token}\\r\\n\\r\\n").encode())
tls.recv(65536)
print("stalled", flush=True)
time.sleep(300)
"""


@pytest.fixture
def neighbour(lab: Lab, resolver: Resolver) -> Iterator[Node]:
    """A host that is no registry, on an address that the agent steers."""
    neighbour = lab.add_node("neighbour")
    identity = lab.authority.server([NEIGHBOUR])
    neighbour.write("/etc/neighbour.crt", identity.certificate)
    neighbour.write("/etc/neighbour.key", identity.key, mode=0o600)
    server = neighbour.spawn(["python3", "-c", SERVER], log="neighbour")
    until(lambda: 443 in neighbour.listening(), "the neighbour listens")
    resolver.answer(dual_stack=True, records={SHARED: [i.ip for i in neighbour.interfaces]})
    yield neighbour
    assert server.running, server.log


def start_agent(node: Node, config: str = "") -> Agent:
    """An agent that steers the neighbour's addresses as well."""
    agent = node.start_agent(config).wait_steering()
    node.run(["getent", "ahosts", SHARED]).or_raise()
    return agent


class Stream:
    """A TLS connection to the neighbour, and what can be asked of it."""

    def __init__(self, lab: Lab, node: Node, address: IPv4Address | IPv6Address):
        context = ssl.create_default_context(cadata=lab.authority.anchor.decode())
        self._plain = node.connect(address, 443, timeout_s=30)
        self._tls = context.wrap_socket(self._plain, server_hostname=NEIGHBOUR)
        self.port = self._tls.getsockname()[1]
        self._stream = self._tls.makefile("rwb")

    def echoes(self) -> bool:
        """Both directions work."""
        self.say(f"echo {self.port}")
        return self._stream.readline() == f"{self.port}\n".encode()

    def say(self, line: str) -> None:
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()

    def heard(self, mib: int) -> bool:
        """So much of what the neighbour sends has come, and is right."""
        return all(self._stream.read(MIB) == BLOCK for _ in range(mib))

    def taken(self, mib: int) -> bool:
        """The neighbour has got so much, and it was right."""
        self.say(f"take {mib}")
        told = hashlib.sha256()
        for _ in range(mib):
            self._stream.write(BLOCK)
            told.update(BLOCK)
        self._stream.flush()
        return self._stream.readline() == f"{told.hexdigest()}\n".encode()

    def was_reset(self) -> bool:
        """How TCP ended below TLS, which would tell of any end as of one."""
        with socket.socket(fileno=os.dup(self._tls.fileno())) as plain:
            plain.settimeout(5)
            try:
                while plain.recv(MIB):
                    pass
            except ConnectionResetError:
                return True
        return False

    def close(self) -> None:
        with suppress(OSError):
            self._stream.close()
        self._tls.close()


Open = Callable[[], Stream]


@pytest.fixture
def stream(lab: Lab, node: Node, neighbour: Node) -> Iterator[Open]:
    opened: list[Stream] = []

    def open_one() -> Stream:
        opened.append(Stream(lab, node, neighbour.interfaces[0].ip))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@contextmanager
def lingering(node: Node, agent: Agent) -> Iterator[Process]:
    """The agent's process, once its supervisor has ended on SIGTERM."""
    with node.process(agent.pid) as process:
        assert agent.stop() == 0, agent.log
        assert process.running, agent.log
        yield process


def only_keepers_are_left(node: Node) -> bool:
    """What passes on the ends of connections still stands, and nothing that steers or watches."""
    left = tables(node)
    return bool(left) and all(table.startswith(KEEPER) for table in left)


def tables(node: Node) -> list[str]:
    return node.run(["nft", "list", "tables"]).or_raise().stdout.splitlines()


def spliced(agent: Agent, reason: str) -> float:
    return agent.metrics()[f'tidegate_connections_total{{outcome="spliced",reason="{reason}"}}']


def memory_mib(node: Node, pid: int, field: str) -> float:
    """`VmRSS` or `VmHWM` (its peak) of a process."""
    lines = node.path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def measured(what: str, figure: str) -> None:
    print(f"measured: {what}: {figure}")  # noqa: T201 (shown by pytest -s and on failure)


# While the agent runs


@pytest.mark.parametrize("mib", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_long_transfer_passes_whole_in_little_memory(node: Node, stream: Open, mib: int) -> None:
    """N6, I8: whichever way it goes, and while a second one is not read for the whole time."""
    node.install_trust()
    agent = start_agent(node)
    pid = agent.pid
    before_mib = memory_mib(node, pid, "VmHWM")
    unread = stream()
    unread.say(f"send {mib}")
    busy = stream()

    began = time.monotonic()
    busy.say(f"send {mib}")
    assert busy.heard(mib)
    down_s = time.monotonic() - began
    assert busy.taken(mib)
    grown_mib = memory_mib(node, pid, "VmHWM") - before_mib
    measured(f"{mib} MiB down, up", f"{down_s:.1f} s, {time.monotonic() - began - down_s:.1f} s")
    measured("the agent's memory", f"{before_mib:.0f} MiB and {grown_mib:.1f} MiB more at most")

    assert unread.heard(mib)
    assert spliced(agent, "other_sni") == 2
    assert grown_mib < 8


def test_both_ends_of_a_splice_are_kept_alive(node: Node, stream: Open) -> None:
    """N6: an idle stream is never cut, and one whose peer has vanished does not stay for ever."""
    node.install_trust()
    agent = start_agent(node)
    idle = stream()
    assert idle.echoes()

    shown = node.run(["ss", "--tcp", "--numeric", "--options", "--processes", "--no-header"]).or_raise()
    ours = [line for line in shown.stdout.splitlines() if f"pid={agent.pid}," in line]
    to_client = [line for line in ours if f":{idle.port} " in line]
    to_origin = [line for line in ours if ":443 " in line and ":8443 " not in line]

    assert len(to_client) == len(to_origin) == 1, shown.stdout
    assert all("timer:(keepalive" in line for line in to_client + to_origin), shown.stdout


# Told to stop


def test_an_idle_stream_survives_sigterm_and_nothing_else_does(lab: Lab, node: Node, stream: Open) -> None:
    """N6, I4: no listener, rule, file or lock of ours remains beside it, and after it nothing at all."""
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node)
    idle = stream()
    assert idle.echoes()

    told = time.monotonic()
    with lingering(node, agent) as process:
        measured("SIGTERM to the supervisor's exit", f"{time.monotonic() - told:.2f} s")
        measured("memory of what lingers", f"{memory_mib(node, process.pid, 'VmRSS'):.0f} MiB")
        assert only_keepers_are_left(node)
        assert Footprint.of(node).ports == before.ports
        assert list(node.path("/run/tidegate").iterdir()) == []
        assert open_files(node, process.pid) == ["/dev/null"]
        assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents
        assert idle.echoes()
        idle.close()
        ended = time.monotonic()
        process.wait(10)
        measured("the stream's end to ours", f"{time.monotonic() - ended:.2f} s")

    assert Footprint.of(node) == before
    assert list(node.path("/run/tidegate").iterdir()) == []


def open_files(node: Node, pid: int) -> list[str]:
    """What a process has open beside sockets, pipes and what the kernel makes for event loops."""
    links = {str(link.readlink()) for link in node.path(f"/proc/{pid}/fd").iterdir()}
    return sorted(link for link in links if link.startswith("/"))


@pytest.mark.parametrize("mib", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_transfer_in_flight_at_sigterm_ends_whole(node: Node, stream: Open, mib: int) -> None:
    """N6: both ways, after the agent that carried its first half is gone."""
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node)
    down, up = stream(), stream()
    assert up.echoes()
    down.say(f"send {mib}")
    assert down.heard(mib // 2)

    with lingering(node, agent) as process:
        assert down.heard(mib - mib // 2)
        assert up.taken(mib)
        down.close()
        up.close()
        process.wait(10)

    assert Footprint.of(node) == before


def test_a_successor_serves_beside_what_lingers(lab: Lab, node: Node, stream: Open) -> None:
    """N6, N18: a restart waits for nobody; the successor's own stop leaves the old stream alone."""
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node)
    old = stream()
    assert old.echoes()

    with lingering(node, agent) as process:
        successor = start_agent(node)
        new = stream()
        assert new.echoes()
        assert spliced(successor, "other_sni") == 1
        assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents
        assert successor.status()["cache"]["blobs"] > 0
        new.close()
        began = time.monotonic()
        assert successor.stop() == 0
        stopped_s = time.monotonic() - began
        until(lambda: set(tables(node)) == {KEEPER, f"{KEEPER}_{process.pid}"}, "the successor's tables go")
        assert old.echoes()
        old.close()
        process.wait(10)

    assert stopped_s < 5
    assert Footprint.of(node) == before


def test_what_lingers_leaves_the_successors_keeper_alone(node: Node, stream: Open) -> None:
    """N6, I1: the successor's connections in flight need it when that is killed."""
    node.install_trust()
    agent = start_agent(node)
    old = stream()
    assert old.echoes()

    with lingering(node, agent) as process:
        successor = start_agent(node)
        old.close()
        process.wait(10)
        assert any(table.startswith(KEEPER) for table in tables(node)), "the successor has one of its own"
        assert successor.stop() == 0

    assert tables(node) == []


@pytest.mark.parametrize("config", ["", 'linger = "1s"', 'linger = "0s"'], ids=["again", "1s", "0s"])
def test_lingering_is_bounded(node: Node, stream: Open, config: str) -> None:
    """I8, I4: by `steering.linger`, and by another SIGTERM; a stream that is cut sees that it was."""
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node, f"[steering]\n{config}")
    idle = stream()
    assert idle.echoes()
    with node.process(agent.pid) as process:
        assert agent.stop() == 0
        if not config:
            assert idle.echoes()
            process.kill(signal.SIGTERM)
        process.wait(10)

    assert idle.was_reset()
    assert Footprint.of(node) == before


def test_a_stream_survives_the_end_of_an_orphaned_agent(node: Node, stream: Open) -> None:
    """N6, I4: the supervisor was killed; the agent goes, but not with the streams of others."""
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node)
    idle = stream()
    assert idle.echoes()
    with node.process(agent.pid) as process:
        agent.supervisor.kill()
        until(lambda: only_keepers_are_left(node), "the redirection is withdrawn")
        assert idle.echoes()
        successor = start_agent(node)
        assert successor.stop() == 0
        assert idle.echoes()
        idle.close()
        process.wait(10)

    assert Footprint.of(node) == before


@pytest.mark.slow
def test_the_end_of_the_drain_does_not_cut_a_stream(lab: Lab, node: Node, stream: Open) -> None:
    """N6: a client that never reads on gets 30 s and no more, its neighbour all the time it wants."""
    image = lab.large()
    node.install_trust()
    before = Footprint.of(node)
    agent = start_agent(node)
    idle = stream()
    assert idle.echoes()
    with node.spawn(["python3", "-c", STALLED, "library/large", image.largest_layer]) as stalled:
        until(lambda: "stalled" in stalled.log, "the client stalls")
        with node.process(agent.pid) as process:
            began = time.monotonic()
            assert agent.stop(timeout_s=DRAIN_S + 8) == 0
            drained_s = time.monotonic() - began
            assert idle.echoes()
            idle.close()
            process.wait(15)  # up to 10 s for what the kernel still has for the stalled client

    assert DRAIN_S - 1 < drained_s < DRAIN_S + 5
    assert Footprint.of(node) == before
