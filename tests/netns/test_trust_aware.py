"""Clients that would not trust the agent's certificate: who is left alone, how soon, and who says so.

Real daemons that read the trust store before the CA came into it, a client with mounts and a bundle of its
own, and a client of which nothing can be known beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lab import Agent, Lab, Node, Process, Registry, until

SMALL_1 = "docker.io/library/small:1"
SINGLE_1 = "docker.io/library/single:1"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
OWN = "/srv/own"
DAEMONS = {"cri": "containerd", "dockerd": "dockerd"}
RESTART = {"containerd": "systemctl restart containerd", "dockerd": "systemctl restart docker"}
TRUSTING_ONLY = """
import signal, ssl, sys, urllib.error, urllib.request
bundle, times = sys.argv[1], int(sys.argv[2])
context = ssl.create_default_context(cafile=bundle)
for _ in range(times):
    try:
        urllib.request.urlopen("https://registry-1.docker.io/v2/", context=context, timeout=20)
    except urllib.error.HTTPError as answered:
        print(answered.code, flush=True)
    except OSError as failed:
        print("failed", failed, flush=True)
signal.pause()
"""
"""A client that asks anew for each request, trusts one bundle, and stays when it is done."""


@pytest.fixture
def own_bundle(node: Node) -> str:
    """What the node trusts before the agent's CA is installed: the lab's internet."""
    node.path(OWN).mkdir()
    node.write(f"{OWN}/ca-certificates.crt", node.path(BUNDLE).read_bytes())
    return f"{OWN}/ca-certificates.crt"


@pytest.fixture
def stay(node: Node) -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.close()


def start_steering(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def spliced(agent: Agent, reason: str) -> float:
    return agent.metrics()[f'tidegate_connections_total{{outcome="spliced",reason="{reason}"}}']


def lost_or_intercepted(agent: Agent) -> dict[str, float]:
    """Connections that were neither spliced nor the agent's own probe, by outcome and reason."""
    return {
        name: count
        for name, count in agent.metrics().items()
        if name.startswith("tidegate_connections_total") and count
        if 'outcome="spliced"' not in name and 'reason="probe"' not in name
    }


def trust_of(agent: Agent, runtime: str) -> dict[str, Any]:  # Any: documented JSON
    (found,) = (each for each in agent.status()["trust"] if each["runtime"] == runtime)
    return dict(found)


def answers(process: Process, count: int) -> list[str]:
    until(
        lambda: len(process.log.splitlines()) >= count or not process.running, f"{count} answers", within_s=30
    )
    return process.log.splitlines()


# Known runtimes


@pytest.mark.parametrize("client", DAEMONS)
def test_a_daemon_that_runs_already_loses_no_pull_and_is_cached_after_its_restart(
    lab: Lab, node: Node, registry: Registry, client: str
) -> None:
    """N9, I1: it has read the trust store before the CA was there; `status` says what to type."""
    node.start_dockerd()  # and containerd
    daemon = node.containerd if client == "cri" else node.dockerd
    assert daemon is not None
    name = DAEMONS[client]
    assert node.pull(client, SINGLE_1).brought(lab.images[SINGLE_1])  # from now on it has read the store
    agent = start_steering(node)

    assert node.pull(client, SMALL_1).brought(lab.images[SMALL_1])

    assert lost_or_intercepted(agent) == {}
    assert spliced(agent, "not_restarted") >= 5
    status = agent.status()
    assert status["cache"]["blobs"] == 0
    assert trust_of(agent, name) == {
        "runtime": name,
        "pid": daemon.process.pid,
        "trusts": False,
        "action": RESTART[name],
    }
    (left_alone,) = status["clients_spliced"]
    assert (left_alone["pid"], left_alone["reason"]) == (daemon.process.pid, "not_restarted")
    assert left_alone["exe"].endswith(f"/{name}")
    assert left_alone["until"] == "restart"

    daemon.restart()
    before = spliced(agent, "not_restarted")
    assert node.pull(client, SMALL_1).brought(lab.images[SMALL_1])

    assert spliced(agent, "not_restarted") == before
    status = agent.status()
    assert status["cache"]["blobs"] > 0
    assert status["clients_spliced"] == []
    assert trust_of(agent, name)["trusts"]
    assert trust_of(agent, name)["action"] == ""


def test_beside_a_daemon_that_is_left_alone_the_others_are_cached(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """N9: the daemon alone is spliced, although others have its user and its cgroup."""
    node.start_containerd()
    assert node.pull("cri", SINGLE_1).brought(lab.images[SINGLE_1])
    agent = start_steering(node)

    assert node.pull("skopeo", SMALL_1).brought(lab.images[SMALL_1])
    assert node.pull("cri", SMALL_1).brought(lab.images[SMALL_1])
    assert node.pull("podman", SMALL_1).brought(lab.images[SMALL_1])

    status = agent.status()
    assert status["cache"]["misses"] > 0
    assert status["cache"]["hits"] > 0
    assert [each["reason"] for each in status["clients_spliced"]] == ["not_restarted"]
    assert all("refused" not in name for name in lost_or_intercepted(agent))


# Other stores


def test_a_client_with_mounts_and_a_bundle_of_its_own_is_left_alone_from_its_first_connection(
    lab: Lab, node: Node, registry: Registry, own_bundle: str, stay: list[Process]
) -> None:
    """N9: a pod on the host's network: it would never trust a CA that only the host's store has."""
    agent = start_steering(node)
    elsewhere = ["unshare", "--mount", "sh", "-ec", f'mount --bind {OWN} /etc/ssl/certs; exec "$@"', "-"]

    destination = "dir:/srv/pulled"
    node.run([*elsewhere, "skopeo", "copy", f"docker://{SMALL_1}", destination]).or_raise()
    client = node.spawn([*elsewhere, sys.executable, "-c", TRUSTING_ONLY, BUNDLE, "3"], log="pod")
    stay.append(client)

    assert answers(client, 3) == ["401"] * 3
    assert lost_or_intercepted(agent) == {}
    assert spliced(agent, "other_store") > 3
    (left_alone,) = agent.status()["clients_spliced"]
    assert (left_alone["pid"], left_alone["reason"]) == (client.pid, "other_store")
    assert agent.status()["cache"]["blobs"] == 0


def test_a_service_with_mounts_of_its_own_and_the_hosts_bundle_is_cached(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """N9, N3: systemd's PrivateTmp and the like do not make it a stranger."""
    agent = start_steering(node)
    private_tmp = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs private /tmp; exec "$@"', "-"]

    node.run([*private_tmp, "skopeo", "copy", f"docker://{SMALL_1}", "dir:/srv/pulled"]).or_raise()

    assert spliced(agent, "other_store") == 0
    assert agent.status()["cache"]["blobs"] > 0


# Strangers


def test_a_client_that_refuses_the_certificate_loses_one_connection_and_is_then_left_alone(
    node: Node, registry: Registry, own_bundle: str, stay: list[Process]
) -> None:
    """N9: its alert marks it, for a day or until it restarts; others of its kind are not concerned."""
    agent = start_steering(node)
    command = [sys.executable, "-c", TRUSTING_ONLY]
    before = datetime.now(UTC)

    stranger = node.spawn([*command, own_bundle, "4"], log="stranger")
    stay.append(stranger)
    first, *rest = answers(stranger, 4)

    assert first.startswith("failed")
    assert "CERTIFICATE_VERIFY_FAILED" in first
    assert rest == ["401"] * 3
    assert spliced(agent, "distrusted") == 3
    (left_alone,) = agent.status()["clients_spliced"]
    assert (left_alone["pid"], left_alone["reason"]) == (stranger.pid, "distrusted")
    kept = datetime.fromisoformat(left_alone["until"]) - before
    assert timedelta(hours=24) - timedelta(seconds=1) <= kept < timedelta(hours=24, minutes=2)

    friend = node.spawn([*command, BUNDLE, "2"], log="friend")
    stay.append(friend)
    assert answers(friend, 2) == ["401"] * 2
    assert spliced(agent, "distrusted") == 3
    stranger.close()
    assert agent.status()["clients_spliced"] == []


# The anchor's time


def test_the_anchor_is_dated_after_the_bundle_that_holds_it(node: Node) -> None:
    """N9: a daemon that started between the two has read the old bundle, and must not seem to trust us."""
    node.install_trust()

    (anchor,) = node.path("/usr/local/share/ca-certificates").glob("tidegate-*.crt")
    assert anchor.stat().st_mtime_ns >= node.path(BUNDLE).stat().st_mtime_ns
