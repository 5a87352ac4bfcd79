"""An agent that keeps dying: what it dies of is left alone, and in the end the whole host is. I1, I4; N4."""

from __future__ import annotations

import pytest

from lab import Agent, Fault, Image, Lab, Node, Recipe, Registry
from lab.footprint import Footprint
from lab.process import CommandFailed
from lab.waiting import until

SMALL = "docker.io/library/small:1"
FATAL = "docker.io/library/fatal:1"
IN_FLIGHT = "/run/tidegate/in-flight"
DEATHS = 5
BYPASSED = 'tidegate_bypassed_total{cause="crashed twice"}'


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def die(node: Node, agent: Agent) -> int:
    """SIGKILL; the process that it was."""
    pid = agent.pid
    with node.process(pid) as process:
        process.kill()
        process.wait()
    return pid


def wait_for_the_next_life(agent: Agent, before: int) -> None:
    def steers() -> bool:
        try:
            status = agent.status()
        except CommandFailed:  # nobody listens in between
            return False
        return bool(status["steering"]["active"]) and int(status["pid"]) != before

    until(steers, "the agent steers again", within_s=20, every_s=0.05)


def came_directly(registry: Registry, image: Image) -> bool:
    return len(registry.requests_for("bytes")) == 1 + len(image.contents.layers)


def test_after_five_deaths_in_a_minute_the_host_is_left_alone(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """N4, I1, I4: nothing of ours steers or stays, pulls go direct, and the message says what to type."""
    node.install_trust()
    before = Footprint.of(node)
    agent = node.start_agent().wait_steering()
    assert node.pull("skopeo", SMALL).ok
    for _ in range(DEATHS - 1):
        wait_for_the_next_life(agent, die(node, agent))
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes") == [], "the fifth life serves what the first one stored"

    die(node, agent)
    exit_code = agent.supervisor.wait(20)
    pull = node.pull("skopeo", SMALL)
    asked = node.tidegate("status")

    assert exit_code == 1
    assert "the agent ended 5 times" in agent.log
    assert "pulls go direct" in agent.log
    assert "systemctl restart tidegate" in agent.log
    assert Footprint.of(node) == before
    assert not node.path("/run/tidegate/agent.sock").exists()
    assert pull.contents == lab.images[SMALL].contents
    assert came_directly(registry, lab.images[SMALL])
    assert (asked.exit_code, "no agent is running" in asked.stderr) == (1, True)

    node.start_agent().wait_steering()
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes") == [], "what to type has helped"


def test_a_request_that_was_in_flight_at_two_deaths_is_passed_through_untouched(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """I1: the third pull comes, past the cache; that of another image is cached as ever."""
    image = registry.publish(Recipe(name="fatal", layers=(6_000_000,), with_busybox=False), "library/fatal")
    registry.fault(Fault(on="bytes", bytes_per_s=2_000_000, times=None))
    request = f"GET registry-1.docker.io /v2/library/fatal/blobs/{image.largest_layer}".encode()
    for _ in range(2):
        with node.start_pull("skopeo", FATAL).process as client:
            until(lambda: request in node.path(IN_FLIGHT).read_bytes(), "the layer is being fetched")
            before = die(node, agent)
            client.kill()
        wait_for_the_next_life(agent, before)
    registry.heal()
    assert agent.metrics()[BYPASSED] == 0
    registry.forget()

    pull = node.pull("skopeo", FATAL)
    again = node.pull("skopeo", FATAL)

    layer = image.largest_layer.removeprefix("sha256:")
    asked = [each for each in registry.requests_for("bytes") if layer in each.path]
    until(lambda: agent.metrics()[BYPASSED] == 2, "both are counted")
    assert pull.contents == again.contents == image.contents
    assert len(asked) == 2, "neither was answered from the cache"
    assert not node.path(f"/var/lib/tidegate/blobs/sha256/{layer[:2]}/{layer}").exists()

    assert node.pull("skopeo", SMALL).ok
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes") == []
