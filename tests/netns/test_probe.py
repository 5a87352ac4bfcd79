"""The self-probe against what goes wrong under a running agent: it withdraws, says why, and recovers (I3)."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from pathlib import Path

import pytest

from lab import Agent, Node, Registry
from lab.waiting import until
from tidegate_agent.steering.encoding import delete_table
from tidegate_agent.steering.netlink import NftSocket

SMALL = "docker.io/library/small:1"
WITHIN_S = 15.0  # the gate probes every 5 s, each probe may take some, and failures are tried again
PIDFD_OPEN, PIDFD_GETFD = 434, 438
"""pidfd_open(2), pidfd_getfd(2): numbers that all architectures share."""


def start(node: Node, backend: str) -> Agent:
    node.install_trust()
    return node.start_agent(f'[steering]\nbackend = "{backend}"\n').wait_steering()


@pytest.fixture
def agent(node: Node) -> Agent:
    return start(node, "nft")


def steering(agent: Agent) -> dict[str, object]:
    return dict(agent.status()["steering"])


def errors(agent: Agent, cause: str) -> float:
    return agent.metrics()[f'tidegate_steering_errors_total{{cause="{cause}"}}']


def fails_of(agent: Agent, failure: str) -> dict[str, object]:
    """The steering part of `status`, once the probe fails of this."""
    until(lambda: steering(agent)["failure"] == failure, f"the probe fails of {failure}", within_s=WITHIN_S)
    assert steering(agent)["active"] is False
    assert errors(agent, failure) >= 1
    assert agent.metrics()["tidegate_probe_success"] == 0
    assert agent.metrics()['tidegate_steering_active{backend="nft"}'] == 0
    return steering(agent)


def recovers(agent: Agent, node: Node, registry: Registry) -> None:
    until(lambda: steering(agent)["active"], "the agent steers again", within_s=2 * WITHIN_S)
    assert (steering(agent)["failure"], steering(agent)["reason"]) == ("", "")
    assert agent.metrics()["tidegate_probe_success"] == 1
    assert node.pull("skopeo", SMALL).ok
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes") == []


def delete_with_the_agents_own_socket(node: Node, agent: Agent) -> None:
    """What only the owner of a table may do, done by another: with a copy of its netlink socket."""
    pid = on_this_machine(node, agent)
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda each: -int(each.name)):
        if not re.match(r"socket:", str(entry.readlink())):
            continue
        descriptor = libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
        with socket.socket(fileno=descriptor) as copied:
            if copied.family != socket.AF_NETLINK or copied.proto != 12:
                continue
            nft = NftSocket()
            nft.close()
            nft._socket = copied
            nft.commit(delete_table("tidegate"))
            break
    else:
        raise AssertionError("the agent has no nftables socket")
    os.close(pidfd)


def on_this_machine(node: Node, agent: Agent) -> int:
    """The agent's pid as seen from here."""
    pid = agent.pid
    network = Path(f"/proc/{node.init_pid}/ns/net").stat().st_ino
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        inside = re.search(r"^NSpid:\s+(\d+)\s+(\d+)$", text, re.M)
        same = inside and int(inside[2]) == pid
        if same and (status.parent / "ns/net").stat().st_ino == network:
            return int(status.parent.name)
    raise AssertionError("the agent is not seen")


@pytest.mark.parametrize("backend", ["nft", pytest.param("ebpf", marks=pytest.mark.slow)])
def test_rules_that_somebody_took_away_are_put_in_anew(node: Node, registry: Registry, backend: str) -> None:
    """I3: found by the next probe or renewal; all is steered as before, without a restart."""
    agent = start(node, backend)
    addresses, pid = steering(agent)["addresses"], agent.pid
    assert node.pull("skopeo", SMALL).ok
    delete_with_the_agents_own_socket(node, agent)
    assert "table inet tidegate {" not in node.run(["nft", "list", "ruleset"]).stdout

    until(lambda: steering(agent)["restored"] == 1, "the rules are put in anew", within_s=WITHIN_S)
    recovers(agent, node, registry)
    assert steering(agent)["addresses"] >= addresses  # type: ignore[operator]  # documented JSON
    assert agent.pid == pid
    assert agent.metrics()["tidegate_steering_restored_total"] == 1
    assert "putting them in anew" in agent.log


@pytest.mark.slow
def test_others_cannot_take_the_rules_away(node: Node, agent: Agent, registry: Registry) -> None:
    """I3, N4: what a firewall does at its reload leaves an owned table alone; nothing is put in anew."""
    node.run(["nft", "flush", "ruleset"]).or_raise()
    node.run(["iptables", "-t", "nat", "-F"]).or_raise()
    assert node.pull("skopeo", SMALL).ok
    registry.forget()
    assert node.pull("skopeo", SMALL).ok

    assert registry.requests_for("bytes") == []
    assert steering(agent)["restored"] == 0


@pytest.mark.slow
def test_a_trust_store_that_lost_the_certificate_is_the_reason(
    node: Node, agent: Agent, registry: Registry
) -> None:
    """I3: at once, because the store's file is looked at; and what to type."""
    node.tidegate("trust", "remove").or_raise()
    told = fails_of(agent, "trust")
    assert told["action"] == "sudo tidegate trust install"
    node.install_trust()
    recovers(agent, node, registry)


BLOCKED = {
    "dns": ["ip", "saddr", "127.0.0.1", "udp", "dport", "!=", "53", "drop"],
    "tls": ["ip", "daddr", "127.0.0.1", "tcp", "dport", "8443", "drop"],
    "ipv6": ["ip6", "daddr", "::1", "tcp", "dport", "8443", "drop"],
}
"""What a firewall that goes too far does to the agent's own ports."""


@pytest.mark.parametrize(
    "failure",
    [pytest.param("dns", marks=pytest.mark.slow), pytest.param("tls", marks=pytest.mark.slow), "ipv6"],
)
def test_a_port_that_cannot_be_reached_is_the_reason(
    node: Node, agent: Agent, registry: Registry, failure: str
) -> None:
    """I3, N12: each family is probed, because each is redirected; the rules go out and come back."""
    node.run(["nft", "add", "table", "inet", "strict"]).or_raise()
    node.run(
        ["nft", "add", "chain", "inet", "strict", "in", "{ type filter hook input priority 0; }"]
    ).or_raise()
    node.run(["nft", "add", "rule", "inet", "strict", "in", *BLOCKED[failure]]).or_raise()
    told = fails_of(agent, failure)
    assert "did not answer" in str(told["reason"])
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes")
    assert steering(agent)["restored"] == 0

    node.run(["nft", "delete", "table", "inet", "strict"]).or_raise()
    recovers(agent, node, registry)
