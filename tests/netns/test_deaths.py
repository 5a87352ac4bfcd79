"""What the agent's ends do to pulls: killed, hung, told to stop, orphaned. I1, I4; N4, N5.

`script/test -s` shows the times that were measured. Bounds are those of the design where it names one.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from lab import Agent, Fault, Lab, Node, Process, Registry
from lab.footprint import Footprint
from lab.waiting import until

SMALL = "docker.io/library/small:1"
LARGE = "docker.io/library/large:1"
LEASE_S = 3.0
MIDDLE = 20 << 20  # so many bytes of the large layer have come when something happens


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def tables(node: Node) -> list[str]:
    return sorted(node.run(["nft", "list", "tables"]).or_raise().stdout.splitlines())


def measured(what: str, seconds: float) -> None:
    print(f"measured: {what}: {seconds * 1000:.1f} ms")


def wait_until(moment: float) -> None:
    until(lambda: time.monotonic() >= moment, "that moment", every_s=0.0005)


def kill(node: Node, agent: Agent, *, supervisor_too: bool) -> float:
    """SIGKILL the agent, and its supervisor just before if asked to; when."""
    with node.process(agent.pid) as process:
        if supervisor_too:
            agent.supervisor.kill()
        process.kill()
        return time.monotonic()


@pytest.mark.parametrize("supervisor_too", [False, True], ids=["agent", "agent and supervisor"])
def test_a_pull_started_10_ms_after_sigkill_succeeds_directly(
    lab: Lab, node: Node, registry: Registry, agent: Agent, supervisor_too: bool
) -> None:
    """N4, I1: what the killed agent had in its cache comes from the registry, so nothing was in between."""
    assert node.pull("skopeo", SMALL).ok
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes") == []

    killed = kill(node, agent, supervisor_too=supervisor_too)
    wait_until(killed + 0.010)
    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert len(registry.requests_for("bytes")) == 1 + len(lab.images[SMALL].contents.layers)


HAMMER = """
import json, os, socket, ssl, sys, time
host, pids = sys.argv[1], [int(pid) for pid in sys.argv[2:]]
address = socket.getaddrinfo(host, 443, socket.AF_INET, socket.SOCK_STREAM)[0][4]
context = ssl._create_unverified_context()
def direct():
    with socket.create_connection(address, timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname=host) as tls:
            return b"Lab Internet CA" in tls.getpeercert(binary_form=True)
assert not direct()
refused = []
killed = time.monotonic()
for pid in pids:
    os.kill(pid, 9)
while True:
    begun = time.monotonic()
    try:
        if direct():
            break
    except OSError as error:
        refused.append(type(error).__name__)
print(json.dumps({"direct_after_s": begun - killed, "lost": refused}))
"""


def test_connections_go_direct_within_milliseconds_of_sigkill(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """N4, I1: the kernel takes the redirection away with the process; nobody has to notice first."""
    told = node.python(HAMMER, "registry-1.docker.io", str(agent.supervisor_pid), str(agent.pid)).or_raise()
    seen = json.loads(told.stdout)
    measured("SIGKILL to the first direct connection", seen["direct_after_s"])

    assert seen["direct_after_s"] < 0.010
    assert len(seen["lost"]) <= 4
