"""Origins that try a node hard in other ways than by an error: a herd at one blob, and very slow layers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lab import Agent, Fault, Node, Recipe, Registry

HERD = Path(__file__).parents[1] / "fault_matrix/herd.py"
CLIENTS = 500
HOST = "registry-1.docker.io"
MOST_RSS_BYTES = 600 << 20


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def rss_bytes(node: Node, agent: Agent) -> int:
    """The most memory that the agent ever had."""
    status = node.run(["cat", f"/proc/{agent.pid}/status"]).or_raise().stdout
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_five_hundred_clients_of_one_cold_blob_cost_one_transfer(
    node: Node, agent: Agent, registry: Registry
) -> None:
    """C11, I8: all of them read while it arrives, every byte is right, and memory stays bounded."""
    image = registry.publish(Recipe(name="herd", layers=(400_000,), with_busybox=False), "library/herd")
    layer = image.largest_layer
    assert node.pull("skopeo", "docker.io/library/small:1").ok
    before = rss_bytes(node, agent)
    # Half of it comes, and the rest when everybody is there.
    registry.fault(Fault(on="bytes", stall_at=200_000, stall_s=6))
    registry.forget()
    argv = [sys.executable, "-P", str(HERD), str(CLIENTS), HOST, f"/v2/library/herd/blobs/{layer}"]
    told = json.loads(node.run(argv, timeout_s=100).or_raise().stdout)
    most = rss_bytes(node, agent)
    print(f"RSS before {before >> 20} MiB, at most {most >> 20} MiB with {CLIENTS} clients")  # noqa: T201 (a figure for who asks: pytest -s)

    whole = f"200 {layer.removeprefix('sha256:')}"
    assert told.pop(f"{whole} hit", 0) < CLIENTS // 2, "those who came too late to see it arrive"
    assert list(told) == [f"{whole} miss"]
    sent = [request.sent_bytes for request in registry.requests_for("bytes")]
    assert sent == [image.sizes[layer]]
    assert most < MOST_RSS_BYTES


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_layer_may_take_longer_than_any_common_time_out(
    node: Node, agent: Agent, registry: Registry
) -> None:
    """C12: six and a half minutes of bytes that never stop: aiohttp alone would end it after five."""
    image = registry.publish(Recipe(name="long", layers=(400_000,), with_busybox=False), "library/long")
    size = image.sizes[image.largest_layer]
    fault = Fault(on="bytes", matching=image.largest_layer.removeprefix("sha256:"), bytes_per_s=size // 390)
    registry.fault(fault)
    registry.forget()
    pull = node.pull("skopeo", "docker.io/library/long:1", timeout_s=600)

    assert pull.contents == image.contents, pull.stderr
    assert pull.duration_s > 360
    asked = [request for request in registry.requests_for("bytes") if request.faulty]
    assert [request.sent_bytes for request in asked] == [size], "one transfer, never cut"
