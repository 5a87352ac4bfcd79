"""`tidegate doctor` on a real node: what it says of a healthy one, and of what really goes wrong (N20)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import Agent, Lab, Node, Registry
from lab.waiting import until

REGISTRY = "registry-1.docker.io"


def findings(node: Node) -> list[dict[str, Any]]:  # Any: the documented JSON
    """What it finds, by the JSON; its exit code agrees."""
    asked = node.tidegate("doctor", "--json")
    told = json.loads(asked.stdout)
    assert asked.exit_code == (0 if told["ok"] else 1)
    assert told["ok"] is (told["findings"] == [])
    return list(told["findings"])


def found(node: Node, words: str) -> dict[str, Any]:
    """The only finding, once there is one with these words."""
    until(
        lambda: [each for each in findings(node) if words in each["cause"]],
        f"{words!r} is found",
        within_s=15,
    )
    (finding,) = findings(node)
    return dict(finding)


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def test_a_node_whose_pulls_are_cached_is_well(node: Node, agent: Agent, registry: Registry) -> None:
    """N20: nothing is found, in words and by the exit code."""
    assert node.pull("skopeo", "docker.io/library/small:1").ok
    until(lambda: findings(node) == [], "nothing is found")

    shown = node.tidegate("doctor")
    assert shown.exit_code == 0
    assert "nothing is wrong" in shown.stdout


def test_what_keeps_pulls_from_the_cache_is_said_one_after_the_other(node: Node, lab: Lab) -> None:
    """N20, N9, N10: not running, not trusted, paused, bypassed; each goes when it is dealt with."""
    assert "no agent is running" in found(node, "no agent")["cause"]
    daemon = node.start_containerd()
    assert node.pull("cri", "docker.io/library/single:1").ok
    agent = node.start_agent()
    assert found(node, "does not hold this node's CA")["next_step"] == "sudo tidegate trust install"
    node.install_trust()
    agent.wait_steering()
    assert found(node, "containerd")["next_step"] == "systemctl restart containerd"
    daemon.restart()
    node.tidegate("pause").or_raise()
    assert found(node, "paused by the operator")["next_step"] == "tidegate resume"
    node.tidegate("resume").or_raise()
    assert findings(node) == []
    node.run(
        [
            "curl",
            "-sSk",
            "-o",
            "/dev/null",
            "--resolve",
            f"{REGISTRY}:443:203.0.113.99",
            f"https://{REGISTRY}/",
        ]
    ).or_raise()
    assert "DNS over TLS" in found(node, "past the cache")["cause"]


@pytest.mark.slow
def test_what_other_programs_do_to_the_machine_is_said(node: Node, agent: Agent) -> None:
    """N20: routing by bits of our mark, and a table of connections that is nearly full."""
    node.run(["ip", "rule", "add", "fwmark", "0x10/0xf0", "lookup", "main"]).or_raise()
    assert "0x10/0xf0" in found(node, "overlaps ours")["cause"]
    node.run(["ip", "rule", "delete", "fwmark", "0x10/0xf0"]).or_raise()

    assert findings(node) == []
