"""The contract of every steering back end, in network namespaces: what is steered, what is not, what ends it.

Two namespaces joined by a veth pair: the node, where a tiny agent runs, and the world, where servers say so.
A back end with an owner is gone with its process; one without is over with its lease at the latest, and at
once where the supervisor, the service manager or the next start comes by (`remains`). What only nft's tables
have is in `test_nft_tables.py`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.waiting import until
from steered.agent import SOURCES, Agent
from steered.joined import empty, node_and_world, reading
from steered.namespace import Namespace, drips, question
from steered.place import (
    LEASE_S,
    NEIGHBOUR4,
    NODE4,
    NODE4_SECOND,
    NODE6,
    PROBE,
    REGISTRY4,
    REGISTRY6,
    RESOLVER4,
    RESOLVER6,
    STEERED,
)
from steered.questions import STEERED_QUESTIONS, UNLIKE_QUESTIONS

BACKENDS = ("nft", "ebpf", "nft-lease", "iptables-legacy")
OWNED = ("nft", "ebpf")
"""The kernel takes these away with their process."""
READING_NAMES = ("nft", "ebpf", "nft-lease")
"""Only queries for steered names come to the agent, and none is tracked."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with node_and_world() as both:
        yield both


@pytest.fixture
def node(namespaces: tuple[Namespace, Namespace]) -> Iterator[Namespace]:
    yield namespaces[0]
    empty(namespaces[0])


# What nft-lease has in common with nft is tried in the slow ring: it is the same code but for one flag.
IN_TURN = [pytest.param(name, marks=[pytest.mark.slow] if name == "nft-lease" else []) for name in BACKENDS]


@pytest.fixture(params=IN_TURN)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def agent(node: Namespace, backend: str) -> Iterator[Agent]:
    agent = Agent(node, backend=backend)
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


def test_the_agents_own_user_is_never_steered(node: Namespace, backend: str) -> None:
    """I5: an account of its own exempts, with a few capabilities; the probe is steered anyway."""
    agent = Agent(node, backend=backend, exemption="65534", setuid=65534)
    try:
        agent.steer((REGISTRY4, 443, 60))

        assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
        assert agent.do("connect_exempt", [REGISTRY4, 443]) == "world"
        assert agent.do("connect_exempt", [PROBE, 443]) == f"agent {PROBE}:443"
    finally:
        agent.close()


def test_an_address_times_out_unless_it_is_learned_again(node: Namespace, agent: Agent, backend: str) -> None:
    """I4: an element ends with its time-out; adding again renews it, and never shortens."""
    second = 1.0 if backend.startswith("iptables") else 0.6  # ipset counts whole seconds
    agent.steer((REGISTRY4, 443, second), (REGISTRY6, 443, second), (NEIGHBOUR4, 443, 60))
    started = time.monotonic()
    agent.do("add", [(REGISTRY4, 443, 30), (NEIGHBOUR4, 443, 0.1)])
    until(lambda: node.greeting(REGISTRY6) == "world", "the end of the time-out", within_s=5)

    assert time.monotonic() - started > second * 0.6
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
    assert node.greeting("127.0.0.1", 443) == ""


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


def test_a_killed_agent_steers_nothing_a_moment_later(node: Namespace, agent: Agent, backend: str) -> None:
    """N4, I1: an owner's rules go with it; without one, the lease ends them: new connections go direct."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(RESOLVER4, RESOLVER6)
    agent.kill()
    killed = time.monotonic()
    until(lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world", "direct again", every_s=0.001)
    took_s = time.monotonic() - killed

    assert took_s < (0.25 if backend in OWNED else LEASE_S + 0.5)  # milliseconds on a quiet machine
    assert node.greeting(REGISTRY6) == "world"
    assert (node.ask(RESOLVER4), node.ask(RESOLVER6)) == ("world", "world")
    if backend in OWNED:
        until(lambda: reading(node) == "", "the keeper goes too")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in OWNED], indirect=True)
def test_the_supervisor_ends_what_nobody_owns_at_once(node: Namespace, agent: Agent) -> None:
    """N4, I1: not the lease alone; a socket that asked before asks the resolver itself."""
    older = asked_before(node, agent)
    agent.kill()
    agent.process.wait()
    done = remains(node, "end_steering")
    answers = (node.greeting(REGISTRY4), node.greeting(REGISTRY6), node.ask(RESOLVER4))
    older.send(question(STEERED, id_=2))

    assert done != "[]"
    assert answers == ("world", "world", "world")
    assert older.recv(100).startswith(b"world ")
    older.close()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in OWNED], indirect=True)
def test_what_nobody_owns_is_cleaned_up_after_the_end(node: Namespace, agent: Agent) -> None:
    """I4: ExecStopPost and the next start take all of it out, and say so once."""
    agent.steer((REGISTRY4, 443, 60))
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)
    agent.kill()
    agent.process.wait()
    left = reading(node)
    done = remains(node, "clean_up")

    assert left != ""
    assert "removed" in done
    assert reading(node) == ""
    assert remains(node, "clean_up") == "[]"
    assert node.greeting(REGISTRY4) == "world"


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in OWNED], indirect=True)
def test_the_next_agent_replaces_what_a_killed_one_left(node: Namespace, agent: Agent, backend: str) -> None:
    """I4: nothing of it is steered that the next one was not told, and nothing is there twice."""
    agent.steer((NEIGHBOUR4, 443, 60))
    agent.steer_dns(RESOLVER4)
    before = reading(node).splitlines()
    agent.kill()
    agent.process.wait()
    successor = Agent(node, backend=backend)
    try:
        successor.steer((REGISTRY4, 443, 60))
        successor.steer_dns(RESOLVER4)

        assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
        assert node.greeting(NEIGHBOUR4) == "world"
        assert len(reading(node).splitlines()) == len(before)
    finally:
        successor.close()


def test_a_living_agents_rules_are_never_cleaned_up(node: Namespace, agent: Agent) -> None:
    """I3, I4: a second agent that was refused ends, and its supervisor cleans up after it."""
    agent.steer((REGISTRY4, 443, 60))

    assert remains(node, "end_steering") == "[]"
    assert remains(node, "clean_up") == "[]"
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"


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
    """N5: SIGSTOP leaves the rules standing, but the lease runs out."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(RESOLVER4)
    agent.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(
        lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world",
        "direct again",
        within_s=LEASE_S + 1,
    )

    assert time.monotonic() - stopped < LEASE_S + 0.5
    assert (node.greeting(REGISTRY6), node.ask(RESOLVER4)) == ("world", "world")
    assert "tidegate" in reading(node)


def test_a_child_that_outlives_the_agent_keeps_nothing(node: Namespace, agent: Agent, backend: str) -> None:
    """N4: every descriptor that holds rules is close-on-exec."""
    agent.steer((REGISTRY4, 443, 60))
    child = agent.do("start_a_child")
    agent.kill()
    agent.process.wait()
    killed = time.monotonic()
    until(lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world", "direct again", every_s=0.001)
    took_s = time.monotonic() - killed
    again = Agent(node, backend=backend)
    try:
        opened = again.ask("open")
    finally:
        again.close()
        os.kill(child, signal.SIGKILL)

    assert took_s < (0.25 if backend in OWNED else LEASE_S + 0.5)
    assert "refused" not in opened


def test_a_fork_that_outlives_the_agent_steers_nothing_after_the_lease(node: Namespace, agent: Agent) -> None:
    """N4, N5: a copy of the process holds all that the agent held, but nobody renews the lease."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    child = agent.do("fork_a_child")
    agent.kill()
    agent.process.wait()
    killed = time.monotonic()
    until(
        lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world",
        "direct again",
        within_s=LEASE_S + 1,
    )
    took_s = time.monotonic() - killed
    os.kill(child, signal.SIGKILL)

    assert took_s < LEASE_S + 0.5


def test_a_second_agent_is_refused_and_told_who_the_first_is(
    node: Namespace, agent: Agent, backend: str
) -> None:
    """The first goes on steering, whichever back end the second wants."""
    agent.steer((REGISTRY4, 443, 60))
    refusals = []
    for other in {backend, "nft"}:
        second = Agent(node, backend=other, port=8444)
        try:
            refusals.append(second.ask("open").get("refused", "not refused"))
        finally:
            second.close()

    for refusal in refusals:
        assert f"process {agent.process.pid}" in refusal
        assert f"kill {agent.process.pid}" in refusal
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"


def flush_nft(node: Namespace) -> None:
    node.run("nft", "flush", "ruleset")


def reload_nft(node: Namespace) -> None:
    """A firewall's script, such as /etc/nftables.conf: flushes, and puts its own tables in."""
    program = "flush ruleset; table inet filter { chain input { type filter hook input priority 0; }; }"
    node.run("nft", program)


def flush_iptables(node: Namespace) -> None:
    """As firewalls of shell scripts do, and firewalld with its iptables back end."""
    for program in ("iptables-legacy", "ip6tables-legacy"):
        node.run("env", f"XTABLES_LOCKFILE={node.path}", program, "-w", "-t", "nat", "-F")
        node.run("env", f"XTABLES_LOCKFILE={node.path}", program, "-w", "-t", "nat", "-X")


def restore_iptables(node: Namespace) -> None:
    """A saved table put back whole, as netfilter-persistent does it."""
    whole = "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n"
    for program in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
        node.run("sh", "-c", f"printf '{whole}' | XTABLES_LOCKFILE={node.path} {program} -w 5")


FLUSHES = {
    "nft flush ruleset": flush_nft,
    "nft -f": reload_nft,
    "iptables -F": flush_iptables,
    "iptables-restore": restore_iptables,
}
LOST_BY = {
    "nft-lease": ("nft flush ruleset", "nft -f"),
    "iptables-legacy": ("iptables -F", "iptables-restore"),
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_somebody_elses_flush_is_survived_or_noticed_and_mended(
    node: Namespace, agent: Agent, backend: str, flush: str
) -> None:
    """I1, I3: what nobody owns is lost, and direct; the probe fails then, and the rules go in anew."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)
    in_flight = node.connect(REGISTRY4)
    assert drips(in_flight)
    FLUSHES[flush](node)
    lost = flush in LOST_BY.get(backend, ())
    steered = (node.greeting(REGISTRY4), node.greeting(PROBE), node.ask(RESOLVER4))
    if lost:
        agent.do("put_in_anew")

    assert steered == (
        ("world", "", "world") if lost else (f"agent {REGISTRY4}:443", f"agent {PROBE}:443", "agent")
    )
    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert node.greeting(REGISTRY6) == f"agent [{REGISTRY6}]:443"
    assert (node.ask(RESOLVER4), node.ask(RESOLVER6)) == ("agent", "agent")
    assert lost or drips(in_flight)
    in_flight.close()


def test_without_the_right_to_change_rules_the_start_is_refused(node: Namespace, backend: str) -> None:
    """No CAP_NET_ADMIN: the refusal names the capability and what to type."""
    command = [
        "setpriv",
        "--bounding-set=-net_admin,-bpf,-sys_admin",
        "--inh-caps=-all",
        sys.executable,
        "-c",
    ]
    program = (
        f"from tidegate_agent.steering import *; built({backend.removesuffix('-legacy')!r}, "
        "port=8443, keeper=None, lease_s=1, exemption=ByUid(uid=0)).open()"
    )
    outcome = subprocess.run(
        ["nsenter", f"--net={node.path}", *command, program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "XTABLES_LOCKFILE": str(node.path)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert "StartRefused: no right to" in outcome.stderr
    assert "CAP_NET_ADMIN" in outcome.stderr
    assert "Run it as root, or give it CAP_" in outcome.stderr


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
@pytest.mark.parametrize("backend", READING_NAMES, indirect=True)
def test_queries_are_steered_for_every_socket_and_direct_again_after_death(
    node: Namespace, agent: Agent, backend: str, resolver: str
) -> None:
    """N2, N4: fresh sockets and older ones; the same 5-tuple goes direct at once after the end."""
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
    if backend not in OWNED:
        remains(node, "end_steering")
    older.send(question(STEERED, id_=3))

    own = older.getsockname()[1]
    assert fresh == "agent"
    assert before == f"world {own} ".encode() + question(STEERED, id_=1)
    assert steered == f"agent {own} ".encode() + question(STEERED, id_=2)
    assert older.recv(100) == f"world {own} ".encode() + question(STEERED, id_=3)
    older.close()


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


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_steered_names_are_steered_however_they_are_written(
    node: Namespace, agent: Agent, resolver: str
) -> None:
    """N2: no way of asking for a steered name is missed."""
    agent.steer()
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)

    answered_by = {kind: node.ask(resolver, query) for kind, query in STEERED_QUESTIONS.items()}

    assert answered_by == dict.fromkeys(STEERED_QUESTIONS, "agent")


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
def test_other_names_do_not_meet_the_agent(node: Namespace, agent: Agent, resolver: str) -> None:
    """N13, N15, I1: the resolver gets the query itself; the agent hears nothing, and cannot delay it."""
    agent.steer()
    agent.steer_dns(PROBE, RESOLVER4, RESOLVER6)

    answered_by = {kind: node.ask(resolver, query) for kind, query in UNLIKE_QUESTIONS.items()}

    assert answered_by == dict.fromkeys(UNLIKE_QUESTIONS, "world")
    assert agent.do("heard") == 0


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
    """I4, N18: connections in flight go on after the withdrawal; then not a rule is left, nor a set."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(PROBE, RESOLVER4)
    established = node.connect(REGISTRY4)
    established.recv(100)
    agent.do("withdraw")
    agent.do("withdraw")
    agent.do("add", [(NEIGHBOUR4, 443, 60)])
    after = (node.greeting(REGISTRY4), node.greeting(NEIGHBOUR4), node.ask(RESOLVER4))
    goes_on = drips(established)
    established.close()
    agent.do("close")
    agent.do("close")
    agent.do("let_go", 3)
    remains(node, "clean_up")

    assert after == ("world", "world", "world")
    assert goes_on
    assert reading(node) == ""


def test_it_can_be_opened_again_after_a_withdrawal(node: Namespace, agent: Agent) -> None:
    """I3: withdrawn for a failing probe, put back when it passes; nothing is there twice."""
    agent.steer((REGISTRY4, 443, 60))
    before = reading(node)
    agent.do("withdraw")
    agent.steer((REGISTRY4, 443, 60))

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert reading(node) == before


def asked_before(node: Namespace, agent: Agent) -> socket.socket:
    """A socket whose queries are steered."""
    agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))
    agent.steer_dns(RESOLVER4)
    sock = node.make_socket(RESOLVER4, socket.SOCK_DGRAM)
    sock.connect((RESOLVER4, 53))
    sock.send(question(STEERED, id_=1))
    assert sock.recv(100).startswith(b"agent ")
    return sock


def remains(node: Namespace, function: str) -> str:
    """What the supervisor, ExecStopPost and the next start do, in a process of their own."""
    program = f"from tidegate_agent.steering import remains; print(remains.{function}())"
    return subprocess.run(
        ["nsenter", f"--net={node.path}", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "XTABLES_LOCKFILE": str(node.path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
