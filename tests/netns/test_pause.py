"""`tidegate pause` and `tidegate resume`, met by real clients."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from lab import Agent, Fault, Lab, Node, Recipe, Registry
from lab.https import ask
from lab.process import CommandFailed
from lab.waiting import until

SMALL = "docker.io/library/small:1"
PROBES = 'tidegate_connections_total{outcome="intercepted",reason="probe"}'
ACTIVE = 'tidegate_steering_active{backend="nft"}'
ADMIN = "http://127.0.0.1:9077"
PING = "https://registry-1.docker.io/v2/"


@pytest.fixture
def agent(lab: Lab, node: Node) -> Agent:
    """An agent that steers and has the small image in its cache."""
    node.install_trust()
    agent = node.start_agent().wait_steering()
    assert node.pull("skopeo", SMALL).ok
    return agent


def blobs_sent(node: Node, registry: Registry) -> int:
    """How many blobs of the small image the registry has to send for a pull of now."""
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    return len(registry.requests_for("bytes"))


def all_of(lab: Lab) -> int:
    return 1 + len(lab.images[SMALL].contents.layers)


def test_a_pause_ends_steering_at_once_and_resume_begins_it_again(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """Operations: connections and look-ups go direct at once, and no probe changes that."""
    assert blobs_sent(node, registry) == 0

    paused = node.tidegate("pause").or_raise()
    queries = agent.status()["dns"]["queries"]
    assert "tidegate resume" in paused.stdout
    assert blobs_sent(node, registry) == all_of(lab)
    assert ask(node, PING).cache == ""
    status = agent.status()
    assert status["dns"]["queries"] - queries <= 2, "none but the probe's"
    assert status["steering"]["active"] is False
    assert status["steering"]["paused"] is True
    assert status["steering"]["reason"] == "paused by the operator until it is told to resume"
    assert status["trust"][0]["trusts"] is True
    assert "tidegate resume" in node.tidegate("status").or_raise().stdout

    metrics = agent.metrics()
    until(lambda: agent.metrics()[PROBES] > metrics[PROBES] + 1, "probes come through", within_s=15)
    assert (metrics[ACTIVE], agent.metrics()[ACTIVE]) == (0, 0)
    assert blobs_sent(node, registry) == all_of(lab)

    resumed = node.tidegate("resume").or_raise()
    assert "steering again" in resumed.stdout
    assert agent.metrics()[ACTIVE] == 1
    assert agent.status()["steering"]["paused"] is False
    assert blobs_sent(node, registry) == 0


def test_a_pause_with_an_end_is_over_by_itself(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """Operations: `--for`; the end is told."""
    node.tidegate("pause", "--for", "3s").or_raise()
    steering = agent.status()["steering"]
    assert steering["reason"] == f"paused by the operator until {steering['paused_until']}"
    assert blobs_sent(node, registry) == all_of(lab)

    until(lambda: agent.status()["steering"]["active"], "the pause is over", within_s=8)

    assert agent.status()["steering"]["paused"] is False
    assert blobs_sent(node, registry) == 0


def test_a_crash_does_not_end_a_pause_and_a_new_start_does(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """N4: what the supervisor restarts is paused as before."""
    node.tidegate("pause", "--for", "1h").or_raise()
    before = agent.status()
    agent.kill(signal.SIGKILL)

    def lives() -> bool:
        try:
            status = agent.status()
        except CommandFailed:  # nobody listens in between
            return False
        return bool(status["pid"] != before["pid"] and status["trust"][0]["trusts"])

    until(lives, "the next life has come through its probe", within_s=15)
    steering = agent.status()["steering"]
    assert (steering["active"], steering["reason"]) == (False, before["steering"]["reason"])
    assert blobs_sent(node, registry) == all_of(lab)

    assert agent.stop() == 0
    assert list(node.path("/run/tidegate").iterdir()) == []
    node.start_agent().wait_steering()
    assert blobs_sent(node, registry) == 0


def test_a_supervisor_that_is_killed_ends_no_pause_either(
    lab: Lab, node: Node, registry: Registry, agent: Agent
) -> None:
    """N4: the agent ends in order then, but nobody stopped it; what a service manager starts is paused."""
    node.tidegate("pause").or_raise()
    agent.supervisor.kill(signal.SIGKILL)
    agent.supervisor.wait()
    until(lambda: not node.path("/run/tidegate/agent.sock").exists(), "the agent has ended", within_s=10)

    again = node.start_agent()

    def paused() -> bool:
        try:
            return bool(again.status()["steering"]["paused"])
        except CommandFailed:
            return False

    until(paused, "the next one is paused", within_s=10)
    assert blobs_sent(node, registry) == all_of(lab)


KEPT_ALIVE = """
import socket, ssl
plain = socket.create_connection(("registry-1.docker.io", 443))
tls = ssl.create_default_context().wrap_socket(plain, server_hostname="registry-1.docker.io")
tls.sendall(b"GET /v2/ HTTP/1.1\\r\\nHost: registry-1.docker.io\\r\\n\\r\\n")
print(tls.recv(65536).decode(), flush=True)
while tls.recv(65536):
    pass
print("closed", flush=True)
"""


def test_what_is_in_flight_ends_well_and_idle_connections_are_closed(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """Operations: a pause costs nobody a transfer, and no client comes back over an old connection."""
    layer = registry.publish(Recipe(name="slow", layers=(6_000_000,), with_busybox=False), "library/slow")
    registry.fault(Fault(on="bytes", bytes_per_s=3_000_000, times=None))
    url = f"https://registry-1.docker.io/v2/library/slow/blobs/{layer.largest_layer}"
    with (
        node.spawn([sys.executable, "-c", KEPT_ALIVE], log="kept-alive") as idle,
        node.spawn(["curl", "-sS", "--no-buffer", "-o", "/tmp/slow", url], log="curl") as transfer,
    ):
        until(lambda: "X-Tidegate-Cache" in idle.log, "one request is answered")
        part = node.path("/tmp/slow")
        until(lambda: part.exists() and part.stat().st_size > 100_000, "the transfer has begun")
        node.tidegate("pause").or_raise()
        until(lambda: "closed" in idle.log, "the idle connection is closed")
        assert transfer.running
        exit_code = transfer.wait(20)

    assert exit_code == 0
    assert part.stat().st_size == layer.sizes[layer.largest_layer]


def test_only_the_unix_socket_takes_orders(node: Node, agent: Agent) -> None:
    """I7: whoever may reach the TCP listener may look, and nothing else; what is malformed is refused."""

    def told(*arguments: str) -> str:
        form = ["curl", "-sS", "-o", "/tmp/said", "-w", "%{http_code}", *arguments]
        return node.run(form).or_raise().stdout

    local = ["--unix-socket", "/run/tidegate/agent.sock"]
    for order in ("pause", "resume"):
        assert told("-X", "POST", f"{ADMIN}/v1/{order}") == "404"
        assert told(*local, f"http://agent/v1/{order}") == "405"
    for body in ('{"for_s": 0}', '{"for_s": "x"}', '{"for": 10}', "[]", '{"for_s": 1e12}'):
        assert told(*local, "-d", body, "http://agent/v1/pause") == "400"
    assert agent.status()["steering"]["active"] is True

    assert told(*local, "-d", '{"for_s": 60}', "http://agent/v1/pause") == "200"
    answer = json.loads(node.path("/tmp/said").read_text())
    assert (answer["active"], answer["paused"]) == (False, True)
    assert answer["paused_until"].endswith("Z")
    assert told(f"{ADMIN}/readyz") == "503"


@pytest.mark.parametrize("duration", ["0s", "10", "ten minutes", "9000d"])
def test_a_duration_that_is_none_is_wrong_usage(node: Node, duration: str) -> None:
    """DESIGN 9: exit code 2, and what to type."""
    done = node.tidegate("pause", "--for", duration)

    assert done.exit_code == 2
    assert "--for" in done.stderr


def test_nobody_to_pause_is_said(node: Node) -> None:
    """DESIGN 9: exit code 1, and what to type."""
    done = node.tidegate("pause")

    assert done.exit_code == 1
    assert "no agent is running" in done.stderr
