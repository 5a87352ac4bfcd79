"""The nft back end in real network namespaces: what is steered, what is not, and what death and hanging do.

Two namespaces joined by a veth pair: the node, where a tiny agent runs, and the world, where servers say so.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import until

LEASE_S = 1.0
REGISTRY4, REGISTRY6 = "198.51.100.10", "2001:db8:1::10"
NEIGHBOUR4 = "198.51.100.20"
RESOLVER4, RESOLVER6 = "198.51.100.53", "2001:db8:1::53"
PROBE = "127.0.0.74"
STEERED = "registry-1.registry.example"
NAMES = (STEERED, "a.b", "x.a-rather-long-host-name.example", "*.wild.example", "*.ab")
NODE4, NODE4_SECOND, NODE6 = "198.51.100.1", "198.51.100.2", "2001:db8:1::1"
SOURCES = [str(Path(__file__).parents[2] / part) for part in ("agent", "dns", "proxy", "core")]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Namespace:
    """A network namespace, held by a process that ends with its standard input: at our end at the latest."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")
        here = Path("/proc/self/ns/net").readlink()
        until(lambda: self.path.readlink() != here, "the namespace")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def close(self) -> None:
        self._holder.communicate()

    def run(self, *command: str) -> str:
        return subprocess.run(
            ["nsenter", f"--net={self.path}", *command], check=True, capture_output=True, text=True
        ).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets made inside belong to this namespace, for good."""
        with Path("/proc/thread-self/ns/net").open() as before, self.path.open() as there:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(there.fileno(), 0) == 0
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), 0) == 0

    def make_socket(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered():
            made = socket.socket(family, kind)
        made.settimeout(2)
        return made

    def connect(self, address: str, port: int = 443, *, timeout_s: float = 2) -> socket.socket:
        made = self.make_socket(address)
        made.settimeout(timeout_s)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def greeting(self, address: str, port: int = 443, *, timeout_s: float = 2) -> str:
        """The line that whoever answers says first; empty when nobody does."""
        try:
            with self.connect(address, port, timeout_s=timeout_s) as sock:
                return sock.makefile().readline().strip()
        except OSError:
            return ""

    def ask(self, address: str, query: bytes | None = None, *, timeout_s: float = 2) -> str:
        """Who answers a query for STEERED, or this one; it saw the very query, from our own port."""
        with self.make_socket(address, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(query or question(STEERED), (address, 53))
            answer, source = sock.recvfrom(512)
            assert source[:2] == (address, 53)
            who, port, heard = answer.split(b" ", 2)
            assert heard == (query or question(STEERED))
            assert int(port) == sock.getsockname()[1]
            return who.decode()


def question(name: str, *, id_: int = 0x7A11, more: bytes = b"") -> bytes:
    """A query for type A (RFC 1035 section 4.1), its letters as they are; `more` is an additional record."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack("!6H", id_, 0x0100, 1, 0, 0, 1 if more else 0)
    return header + labels + b"\0" + struct.pack("!2H", 1, 1) + more


class World:
    """The servers outside: TCP on 443, 444 and 53 says `world`.

    UDP on 53 answers with `world`, the port that the query came from, and the query.
    """

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._tcp = [
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
                for port in (443, 444, 53)
            ]
            self._udp = [
                socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_DGRAM)
                for a in (RESOLVER4, RESOLVER6)
            ]
            for sock, address in zip(self._udp, (RESOLVER4, RESOLVER6), strict=True):
                sock.bind((address, 53))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([*self._tcp, *self._udp, self._stop], [], [])
            if self._stop in ready:
                return
            for sock in ready:
                with contextlib.suppress(OSError):
                    if sock in self._udp:
                        query, client = sock.recvfrom(512)
                        sock.sendto(f"world {client[1]} ".encode() + query, client)
                    else:
                        connection, _ = sock.accept()
                        connection.sendall(b"world\n")
                        connection.close()

    def close(self) -> None:
        os.write(self._stopped, b".")
        self._thread.join()
        for sock in (*self._tcp, *self._udp):
            sock.close()
        os.close(self._stop)
        os.close(self._stopped)


class Agent:
    """The tiny agent in the node, commanded line by line."""

    def __init__(
        self,
        node: Namespace,
        *,
        backend: str = "nft",
        port: int = 8443,
        exemption: str = "0x74/0xff",
        setuid: int | None = None,
    ) -> None:
        command = ["nsenter", f"--net={node.path}"]
        if setuid is not None:
            rights = "-all,+net_admin,+net_raw,+bpf"
            command += ["setpriv", f"--reuid={setuid}", "--clear-groups", "--inh-caps", rights]
            command += ["--ambient-caps", rights]
        program = Path(__file__).with_name("steered_host.py")
        self.process = subprocess.Popen(
            [*command, sys.executable, str(program), backend, str(port), str(LEASE_S), exemption],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        )

    def do(self, do: str, given: Any = None) -> Any:
        answer = self.ask(do, given)
        assert "refused" not in answer, answer["refused"]
        return answer["ok"]

    def ask(self, do: str, given: Any = None) -> dict[str, Any]:
        self.send(do, given)
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def send(self, do: str, given: Any = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "with": given}) + "\n")
        self.process.stdin.flush()

    def steer_dns(self, *resolvers: str, names: Sequence[str] = NAMES) -> None:
        self.do("names", names)
        self.do("steer_dns", resolvers)

    def steer(self, *endpoints: tuple[str, int, float]) -> "Agent":
        self.do("open")
        self.do("activate")
        self.do("add", endpoints)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    node, world = Namespace(), Namespace()
    node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(world.pid))
    for namespace in (node, world):
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.run("ip", "link", "set", "eth0", "up")
    for address in (NODE4, NODE4_SECOND, REGISTRY4, NEIGHBOUR4, RESOLVER4):
        owner = node if address in (NODE4, NODE4_SECOND) else world
        owner.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    for address in (NODE6, REGISTRY6, RESOLVER6):
        owner = node if address == NODE6 else world
        owner.run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    servers = World(world)
    until(lambda: node.greeting(REGISTRY4) == "world", "the world over IPv4")
    until(lambda: node.greeting(REGISTRY6) == "world", "the world over IPv6")
    yield node, world
    servers.close()
    node.close()
    world.close()


@pytest.fixture
def node(namespaces: tuple[Namespace, Namespace]) -> Iterator[Namespace]:
    node, _ = namespaces
    yield node
    node.run("nft", "flush", "ruleset")
    until(lambda: node.run("nft", "list", "ruleset") == "", "no rule left")


@pytest.fixture
def agent(node: Namespace) -> Iterator[Agent]:
    agent = Agent(node)
    yield agent
    agent.close()


def test_steered_connections_arrive_with_their_original_destination(node: Namespace, agent: Agent) -> None:
    """N1, N12: both families are redirected, and the agent learns where each was going."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert node.greeting(REGISTRY6) == f"agent [{REGISTRY6}]:443"


def test_other_addresses_and_other_ports_are_untouched(node: Namespace, agent: Agent) -> None:
    """N6: only the address and port that was learned is redirected."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60), (NEIGHBOUR4, 444, 60))

    assert node.greeting(NEIGHBOUR4, 443) == "world"
    assert node.greeting(REGISTRY4, 444) == "world"
    assert node.greeting(REGISTRY6, 444) == "world"
    assert node.greeting(NEIGHBOUR4, 444) == f"agent {NEIGHBOUR4}:444"


def test_a_marked_socket_is_never_steered(node: Namespace, agent: Agent) -> None:
    """I5: the mark exempts under its mask; bits of others neither exempt nor hinder."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    others = node.make_socket(REGISTRY4)
    others.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x4000)
    others.connect((REGISTRY4, 443))
    ours = node.make_socket(REGISTRY4)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x4074)
    ours.connect((REGISTRY4, 443))

    assert agent.do("connect_exempt", [REGISTRY4, 443]) == "world"
    assert agent.do("connect_exempt", [REGISTRY6, 443]) == "world"
    assert others.makefile().readline() == f"agent {REGISTRY4}:443\n"
    assert ours.makefile().readline() == "world\n"
    others.close()
    ours.close()


def test_the_agents_own_user_is_never_steered(node: Namespace) -> None:
    """I5: an account of its own exempts; CAP_NET_ADMIN is enough; the probe is steered anyway."""
    agent = Agent(node, exemption="65534", setuid=65534)
    try:
        agent.steer((REGISTRY4, 443, 60))

        assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
        assert agent.do("connect_exempt", [REGISTRY4, 443]) == "world"
        assert agent.do("connect_exempt", [PROBE, 443]) == f"agent {PROBE}:443"
    finally:
        agent.close()


def test_an_address_times_out_unless_it_is_learned_again(node: Namespace, agent: Agent) -> None:
    """I4: an element ends with its time-out; adding again renews it, and never shortens."""
    agent.steer((REGISTRY4, 443, 0.6), (REGISTRY6, 443, 0.6), (NEIGHBOUR4, 443, 60))
    started = time.monotonic()
    agent.do("add", [(REGISTRY4, 443, 30), (NEIGHBOUR4, 443, 0.1)])
    until(lambda: node.greeting(REGISTRY6) == "world", "the end of the time-out", within_s=3)

    assert time.monotonic() - started > 0.4
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert node.greeting(NEIGHBOUR4) == f"agent {NEIGHBOUR4}:443"
    assert agent.do("addresses") == 2


def test_a_removed_address_goes_direct_and_its_connections_go_on(node: Namespace, agent: Agent) -> None:
    """N18: taking an address out drains it."""
    agent.steer((REGISTRY4, 443, 60))
    established = node.connect(REGISTRY4)
    established.recv(100)
    agent.do("remove", [(REGISTRY4, 443), (NEIGHBOUR4, 443)])

    assert node.greeting(REGISTRY4) == "world"
    assert drips(established)
    established.close()


def test_addresses_of_this_host_and_this_link_are_never_steered(node: Namespace, agent: Agent) -> None:
    """I5: loopback, link-local (the metadata service), our own addresses and groups are left out."""
    never = [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
    ]
    never += [NODE4, NODE4_SECOND, NODE6, "198.51.100.255", "255.255.255.255", "::ffff:198.51.100.10"]
    agent.steer(*((address, 443, 60) for address in never))

    assert agent.do("addresses") == 0
    assert "elements" not in node.run("nft", "list", "set", "inet", "tidegate", "steered4")
    assert "elements" not in node.run("nft", "list", "set", "inet", "tidegate", "steered6")


def test_nothing_is_steered_before_the_lease_is_taken_and_after_it_is_given_up(
    node: Namespace, agent: Agent
) -> None:
    """I3: the rules stand, inactive, until the agent has proved itself; suspend ends them at once."""
    agent.do("open")
    agent.do("add", [(REGISTRY4, 443, 60)])
    agent.steer_dns(RESOLVER4)
    before = (node.greeting(REGISTRY4), node.ask(RESOLVER4))
    agent.do("activate")
    active = (node.greeting(REGISTRY4), node.ask(RESOLVER4))
    agent.do("suspend")
    agent.do("suspend")

    assert before == ("world", "world")
    assert active == (f"agent {REGISTRY4}:443", "agent")
    assert (node.greeting(REGISTRY4), node.ask(RESOLVER4)) == ("world", "world")
    agent.do("activate")
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"


def test_renewing_does_not_take_a_lease_that_was_given_up(node: Namespace, agent: Agent) -> None:
    """I3: the heartbeat goes on while suspended, without steering anything."""
    agent.steer((REGISTRY4, 443, 60))
    agent.do("suspend")
    deadline = time.monotonic() + LEASE_S

    while time.monotonic() < deadline:  # several renewals pass
        assert node.greeting(REGISTRY4) == "world"


def test_the_lease_outlasts_its_length_while_renewed_and_ends_when_renewals_stop(
    node: Namespace, agent: Agent
) -> None:
    """N5: the kernel itself stops steering when the accepting loop stops renewing."""
    agent.steer((REGISTRY4, 443, 60))
    deadline = time.monotonic() + 1.5 * LEASE_S
    while time.monotonic() < deadline:
        assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    agent.do("renewing", False)
    stopped = time.monotonic()
    until(lambda: node.greeting(REGISTRY4) == "world", "the end of the lease", within_s=LEASE_S + 1)

    assert time.monotonic() - stopped > LEASE_S / 2


def test_a_killed_agent_steers_nothing_a_moment_later(node: Namespace, agent: Agent) -> None:
    """N4, I1: the kernel takes the table away with its owner; new connections and queries go direct."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(RESOLVER4, RESOLVER6)
    agent.kill()
    killed = time.monotonic()
    until(lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world", "direct again", every_s=0.001)
    took_s = time.monotonic() - killed

    assert took_s < 0.25  # some milliseconds on a quiet machine
    assert node.greeting(REGISTRY6) == "world"
    assert (node.ask(RESOLVER4), node.ask(RESOLVER6)) == ("world", "world")
    until(lambda: table_names(node) == [], "the keeper goes too")


@pytest.mark.parametrize("registry", [REGISTRY4, REGISTRY6])
def test_a_reader_in_flight_gets_a_clean_end_when_the_agent_is_killed(
    node: Namespace, agent: Agent, registry: str
) -> None:
    """N4, I1: the keeper table lets the FIN through; without it the reader would hang."""
    agent.steer((registry, 443, 60))
    reader = node.connect(registry)
    assert drips(reader)
    agent.kill()

    while reader.recv(4096):  # raises on a reset, and on the time-out
        pass
    reader.close()


def test_a_stopped_agent_steers_nothing_after_the_lease(node: Namespace, agent: Agent) -> None:
    """N5: SIGSTOP leaves the table standing, but the lease runs out."""
    agent.steer((REGISTRY4, 443, 60))
    agent.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(
        lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world",
        "direct again",
        within_s=LEASE_S + 1,
    )

    assert time.monotonic() - stopped < LEASE_S + 0.5
    assert "tidegate" in table_names(node)


def test_a_second_agent_is_refused_and_told_who_the_first_is(node: Namespace, agent: Agent) -> None:
    """The table belongs to the first agent, and goes on steering."""
    agent.steer((REGISTRY4, 443, 60))
    second = Agent(node, port=8444)
    try:
        answer = second.ask("open")
    finally:
        second.close()

    assert f"owned by process {agent.process.pid}" in answer["refused"]
    assert f"kill {agent.process.pid}" in answer["refused"]
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"


def test_a_table_of_that_name_that_nobody_owns_is_refused_with_what_to_type(
    node: Namespace, agent: Agent
) -> None:
    """A saved and restored ruleset may hold our table without an owner."""
    node.run("nft", "add", "table", "inet", "tidegate")

    assert "nft delete table inet tidegate" in agent.ask("open")["refused"]


def test_without_the_right_to_change_rules_the_start_is_refused(node: Namespace) -> None:
    """No CAP_NET_ADMIN: the refusal names the capability and what to type."""
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", sys.executable, "-c"]
    program = "from tidegate_agent.steering import *; NftSteering(port=8443, exemption=ByUid(uid=0)).open()"
    outcome = subprocess.run(
        ["nsenter", f"--net={node.path}", *command, program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert "StartRefused: no right to change nft rules (CAP_NET_ADMIN)" in outcome.stderr
    assert "Run it as root, or give it CAP_NET_ADMIN" in outcome.stderr


def test_somebody_elses_flush_leaves_our_tables(node: Namespace, agent: Agent) -> None:
    """I1: `nft flush ruleset`, as a firewall reload does it, takes only what nobody owns."""
    agent.steer((REGISTRY4, 443, 60))
    node.run("nft", "flush", "ruleset")

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert table_names(node) == ["tidegate", "tidegate_keeper"]


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_queries_are_steered_for_every_socket_and_direct_again_after_death(
    node: Namespace, agent: Agent, resolver: str
) -> None:
    """N2, N4: fresh sockets and older ones; the same 5-tuple goes direct at once after death."""
    older = node.make_socket(resolver, socket.SOCK_DGRAM)
    older.connect((resolver, 53))
    older.send(question(STEERED, id_=1))
    before = older.recv(100)
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(resolver)
    older.send(question(STEERED, id_=2))
    steered, fresh = older.recv(100), node.ask(resolver)
    agent.kill()
    agent.process.wait()
    older.send(question(STEERED, id_=3))

    own = older.getsockname()[1]
    assert fresh == "agent"
    assert before == f"world {own} ".encode() + question(STEERED, id_=1)
    assert steered == f"agent {own} ".encode() + question(STEERED, id_=2)
    assert older.recv(100) == f"world {own} ".encode() + question(STEERED, id_=3)
    older.close()


def test_queries_leave_no_trace_in_connection_tracking(node: Namespace, agent: Agent) -> None:
    """N2: a busy resolver must not fill the host's table, nor leave 5-tuples pointing at us."""
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(RESOLVER4, RESOLVER6)
    before = tracked(node)
    answers = {node.ask(resolver) for resolver in (RESOLVER4, RESOLVER6) for _ in range(20)}

    assert answers == {"agent"}
    assert tracked(node) <= before


def test_queries_of_exempt_sockets_and_for_other_resolvers_go_direct(node: Namespace, agent: Agent) -> None:
    """I5: the agent's own look-ups reach the real resolver."""
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(RESOLVER4)
    marked = node.make_socket(RESOLVER4, socket.SOCK_DGRAM)
    marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x74)
    marked.sendto(question(STEERED), (RESOLVER4, 53))

    assert marked.recv(100).startswith(b"world ")
    assert node.ask(RESOLVER6) == "world"
    assert node.ask(RESOLVER4) == "agent"
    marked.close()


EDNS = struct.pack("!BHHIH", 0, 41, 1232, 0x8000, 12) + b"\x00\x0a\x00\x08tidegate"
"""An OPT record with DO and a cookie (RFC 6891, RFC 7873)."""

STEERED_QUESTIONS = {
    "exact": question(STEERED),
    "mixed case": question("ReGiStRy-1.rEgIsTrY.eXaMpLe"),
    "EDNS": question(STEERED.upper(), more=EDNS),
    "short": question("a.B"),
    "long": question("X.a-rather-LONG-host-name.example"),
    "a wildcard's label of 1": question("1.WILD.example"),
    "a wildcard's label of 63": question(f"{'Ab' * 31}c.wild.EXAMPLE", more=EDNS),
    "a short parent": question("anything.aB"),
    "a label that itself looks like a name": question("wild.ab"),
    "only the compared octets are the same": question("registry-1.regis-ab.example.org"),
}

OTHER_QUESTIONS = {
    "another name": question("www.example.org"),
    "EDNS": question("www.example.org", more=EDNS),
    "below a steered one": question(f"x.{STEERED}"),
    "above a steered one": question("registry.example"),
    "another first label": question("registry-2.registry.example"),
    "two labels below": question("a.b.wild.example"),
    "the parent": question("wild.example"),
    "the parent, longer": question("x.wild.example.org"),
    "shorter than what is compared": question("x"),
    "the root": b"\x7a\x11\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1",
    "no DNS at all": b"q",
}


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_steered_names_are_steered_however_they_are_written(
    node: Namespace, agent: Agent, resolver: str
) -> None:
    """N2: no way of asking for a steered name is missed; what cannot be told from one comes along."""
    agent.steer()
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)

    answered_by = {kind: node.ask(resolver, query) for kind, query in STEERED_QUESTIONS.items()}

    assert answered_by == dict.fromkeys(STEERED_QUESTIONS, "agent")


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_other_names_go_direct(node: Namespace, agent: Agent, resolver: str) -> None:
    """N13, I1: the resolver gets the query itself, from the client's own port; the agent hears nothing."""
    agent.steer()
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)

    answered_by = {kind: node.ask(resolver, query) for kind, query in OTHER_QUESTIONS.items()}

    assert answered_by == dict.fromkeys(OTHER_QUESTIONS, "world")
    assert agent.do("heard") == 0
    assert node.ask(resolver) == "agent"
    assert agent.do("heard") == 1


def test_a_stopped_agent_does_not_delay_other_names(node: Namespace, agent: Agent) -> None:
    """I1, N5: within the lease a steered name waits; the others are answered as if there were no agent."""
    agent.steer()
    agent.steer_dns(RESOLVER4, RESOLVER6)
    direct_s = min(seconds_of(node, OTHER_QUESTIONS["another name"]) for _ in range(5))
    agent.process.send_signal(signal.SIGSTOP)
    stopped_s = min(seconds_of(node, OTHER_QUESTIONS["another name"]) for _ in range(5))
    with pytest.raises(TimeoutError):
        node.ask(RESOLVER4, timeout_s=LEASE_S / 4)

    assert stopped_s < direct_s + 0.01


def test_names_are_replaced_in_one_step_with_their_resolvers(node: Namespace, agent: Agent) -> None:
    """N13: steered names may change while queries flow, also to more than one send buffer of rules."""
    agent.steer()
    agent.steer_dns(RESOLVER4)
    before = node.ask(RESOLVER4)
    agent.steer_dns(RESOLVER4, names=["new.example", *(f"*.{number}.example" for number in range(40))])

    assert (before, node.ask(RESOLVER4)) == ("agent", "world")
    assert node.ask(RESOLVER4, question("new.example")) == "agent"
    assert node.ask(RESOLVER4, question("x.39.example")) == "agent"
    agent.steer_dns(RESOLVER4, names=[])
    assert node.ask(RESOLVER4, question("x.39.example")) == "world"


def test_tcp_queries_are_steered_with_their_original_destination(node: Namespace, agent: Agent) -> None:
    """N13: TCP/53 of the resolvers, and of nobody else."""
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(RESOLVER4, RESOLVER6)

    assert node.greeting(RESOLVER4, 53) == f"agent {RESOLVER4}:53"
    assert node.greeting(RESOLVER6, 53) == f"agent [{RESOLVER6}]:53"
    assert node.greeting(REGISTRY4, 53) == "world"


def test_resolvers_are_replaced_in_one_step(node: Namespace, agent: Agent) -> None:
    """N13: what was steered for the old resolvers is not any more."""
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(RESOLVER4)
    agent.steer_dns(RESOLVER6)

    assert node.ask(RESOLVER4) == "world"
    assert node.ask(RESOLVER6) == "agent"
    assert node.greeting(RESOLVER4, 53) == "world"


def test_the_probe_goes_through_the_rules_even_without_the_lease(node: Namespace, agent: Agent) -> None:
    """I3: the agent can try its own DNS and TLS before anything of the host's is steered."""
    agent.do("open")
    agent.steer_dns(PROBE, RESOLVER4)

    assert node.greeting(PROBE) == f"agent {PROBE}:443"
    assert node.ask(PROBE) == "agent"
    assert node.greeting(PROBE, 53) == f"agent {PROBE}:53"
    assert node.ask(RESOLVER4) == "world"


def test_a_connection_dialled_to_the_agent_directly_has_no_original_destination(
    node: Namespace, agent: Agent
) -> None:
    """I5: else the agent would dial itself."""
    agent.steer((REGISTRY4, 443, 60))

    assert node.greeting("127.0.0.1", 8443) == "agent None"
    assert node.greeting("::1", 8443) == "agent None"


def test_withdrawing_and_closing_leave_nothing_behind(node: Namespace, agent: Agent) -> None:
    """I4, N18: connections in flight go on after the withdrawal, and the keeper stays until they end."""
    agent.steer((REGISTRY4, 443, 60))
    agent.steer_dns(RESOLVER4)
    established = node.connect(REGISTRY4)
    established.recv(100)
    agent.do("withdraw")
    agent.do("withdraw")
    agent.do("add", [(NEIGHBOUR4, 443, 60)])
    withdrawn = table_names(node)
    goes_on = drips(established)
    established.close()
    until(lambda: established_to_agent(node) == 0, "the end of the connection")
    agent.do("close")
    agent.do("close")
    agent.do("let_go", 1)
    agent.do("let_go", 1)

    assert (withdrawn, goes_on) == (["tidegate_keeper"], True)
    assert node.run("nft", "list", "ruleset") == ""
    assert node.greeting(REGISTRY4) == "world"


def test_closing_leaves_the_keeper_to_connections_in_flight(node: Namespace, agent: Agent) -> None:
    """I1: whoever still reads gets its clean end; the supervisor removes the keeper afterwards."""
    agent.steer((REGISTRY4, 443, 60))
    reader = node.connect(REGISTRY4)
    assert drips(reader)
    agent.do("close")

    assert table_names(node) == ["tidegate_keeper"]
    assert drips(reader)
    reader.close()


def test_the_keeper_stays_while_one_of_two_processes_holds_it(node: Namespace, agent: Agent) -> None:
    """I1, I4: supervisor and agent share its socket; the kernel deletes it with the last of them."""
    agent.steer((REGISTRY4, 443, 60))
    sharing = agent.do("share_the_keeper", None)
    agent.kill()
    until(lambda: "tidegate" not in table_names(node), "what steers goes with the agent")
    held = table_names(node)
    os.kill(sharing, signal.SIGKILL)
    until(lambda: table_names(node) == [], "the keeper goes with its last holder")

    assert held == ["tidegate_keeper"]


def test_the_keeper_is_let_go_once_the_kernel_has_ended_the_orphans(node: Namespace, agent: Agent) -> None:
    """I1, I4, I8: the supervisor's end waits for connections that nobody holds, but not for ever."""
    agent.steer((REGISTRY4, 443, 60))
    reader = node.connect(REGISTRY4)
    assert drips(reader)
    unheard(node)
    agent.do("orphan", None)
    agent.do("withdraw")
    began = time.monotonic()
    agent.do("let_go", 1)
    waited_s = time.monotonic() - began
    left = table_names(node)
    node.run("nft", "delete", "table", "inet", "unheard")
    reader.close()

    assert waited_s >= 1
    assert left == ["unheard"]


def test_a_keepers_name_that_is_taken_is_no_obstacle(node: Namespace, agent: Agent) -> None:
    """N6: an agent that lingers has its keeper until its end; the next one gets one of its own."""
    node.run("nft", "add", "table", "inet", "tidegate_keeper", "{ flags dormant; }")
    agent.steer((REGISTRY4, 443, 60))

    second = f"tidegate_keeper_{agent.process.pid}"
    assert sorted(table_names(node)) == ["tidegate", "tidegate_keeper", second]


def test_it_can_be_opened_again_after_a_withdrawal(node: Namespace, agent: Agent) -> None:
    """I3: withdrawn for a failing probe, put back when it passes; the keeper is adopted, not doubled."""
    agent.steer((REGISTRY4, 443, 60))
    agent.do("withdraw")
    agent.steer((REGISTRY4, 443, 60))

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert node.run("nft", "list", "table", "inet", "tidegate_keeper").count("ct state new") == 1


def test_the_dry_run_shows_the_rules_that_go_in(node: Namespace, agent: Agent) -> None:
    """What --dry-run prints is what nft reads back from the kernel, but for elements and its own comment."""
    agent.do("open")
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)

    assert comparable(agent.do("dry_run")) == comparable(node.run("nft", "list", "ruleset"))
    assert "flags owner" in agent.do("dry_run")


def test_no_helper_process_inherits_the_table(node: Namespace, agent: Agent) -> None:
    """N4: the netlink socket is close-on-exec, so a child that outlives the agent does not keep it."""
    agent.steer((REGISTRY4, 443, 60))
    fds = Path(f"/proc/{agent.process.pid}/fdinfo")
    netlink = [fd for fd in fds.iterdir() if "netlink" in socket_protocol(agent.process.pid, fd.name)]

    assert netlink
    for fd in netlink:
        flags = re.search(r"^flags:\s*(\d+)$", fd.read_text(), re.MULTILINE)
        assert flags is not None and int(flags[1], 8) & os.O_CLOEXEC


def seconds_of(node: Namespace, query: bytes) -> float:
    began = time.monotonic()
    assert node.ask(RESOLVER4, query) == "world"
    return time.monotonic() - began


def unheard(node: Namespace) -> None:
    """What clients say to the agent is lost, acknowledgements included: its connections cannot end."""
    node.run("nft", "add table inet unheard")
    node.run("nft", "add chain inet unheard input { type filter hook input priority 0; }")
    node.run("nft", "add rule inet unheard input tcp dport 8443 drop")


def drips(reader: socket.socket) -> bool:
    """Some more bytes arrive."""
    return len(reader.recv(10)) > 0 and len(reader.recv(10)) > 0


def table_names(node: Namespace) -> list[str]:
    return sorted(line.split()[-1] for line in node.run("nft", "list", "tables").splitlines())


def tracked(node: Namespace) -> int:
    """How many flows connection tracking holds."""
    return int(node.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def established_to_agent(node: Namespace) -> int:
    rows = Path(f"/proc/{node.pid}/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[1].endswith(":20FB") and row.split()[3] not in ("05", "06", "0A") for row in rows)


def comparable(rules: str) -> list[str]:
    """Comparable lines: no indentation, no comments, no empty lines."""
    stripped = (re.sub(r" # progname .*", "", line).strip() for line in rules.splitlines())
    return [line for line in stripped if line]


def socket_protocol(pid: int, fd: str) -> str:
    """`netlink` when the descriptor is a netlink socket, else nothing."""
    inode = str(Path(f"/proc/{pid}/fd/{fd}").readlink()).strip("socket:[]")
    lines = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]
    return "netlink" if inode in {line.split()[-1] for line in lines} else ""
