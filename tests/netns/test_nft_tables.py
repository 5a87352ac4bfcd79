"""What only the nft back ends have: tables with an owner, the keeper, queries told apart and not tracked."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import until
from steered.agent import Agent
from steered.joined import empty, node_and_world, table_names
from steered.namespace import Namespace, drips, question
from steered.place import LEASE_S, NEIGHBOUR4, PROBE, REGISTRY4, RESOLVER4, RESOLVER6
from steered.questions import OTHER_QUESTIONS, SAME_TO_NFT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with node_and_world() as both:
        yield both


@pytest.fixture
def node(namespaces: tuple[Namespace, Namespace]) -> Iterator[Namespace]:
    yield namespaces[0]
    empty(namespaces[0])


@pytest.fixture
def agent(node: Namespace) -> Iterator[Agent]:
    agent = Agent(node)
    yield agent
    agent.close()


def test_a_table_of_that_name_that_nobody_owns_is_replaced(node: Namespace, agent: Agent) -> None:
    """I4: it carries our name and no agent lives: a killed one's, or a saved and restored ruleset's."""
    node.run("nft", "add", "table", "inet", "tidegate")
    node.run("nft", "add", "set", "inet", "tidegate", "alive", "{ type ipv4_addr; }")
    agent.steer((REGISTRY4, 443, 60))

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert "flags owner" in node.run("nft", "list", "table", "inet", "tidegate")


def test_somebody_elses_flush_leaves_our_tables(node: Namespace, agent: Agent) -> None:
    """I1: `nft flush ruleset`, as a firewall reload does it, takes only what nobody owns."""
    agent.steer((REGISTRY4, 443, 60))
    node.run("nft", "flush", "ruleset")

    assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    assert table_names(node) == ["tidegate", "tidegate_keeper"]


def test_queries_leave_no_trace_in_connection_tracking(node: Namespace, agent: Agent) -> None:
    """N2: a busy resolver must not fill the host's table, nor leave 5-tuples pointing at us."""
    agent.do("open")
    agent.do("activate")
    agent.steer_dns(RESOLVER4, RESOLVER6)
    before = tracked(node)
    answers = {node.ask(resolver) for resolver in (RESOLVER4, RESOLVER6) for _ in range(20)}

    assert answers == {"agent"}
    assert tracked(node) <= before


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
    assert {node.ask(resolver, query) for query in SAME_TO_NFT.values()} == {"agent"}


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
