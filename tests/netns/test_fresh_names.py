"""Ten thousand fresh names, each resolved and its address connected to at once: learn mode's promise.

The real responder and the real rules, in a tiny agent. A client connects as soon as it has its answer:
whoever is told an address that is not steered yet goes past the agent. The lease is long: it is not what
is tried here.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steered.agent import Agent
from steered.joined import empty, node_and_world
from steered.namespace import Namespace
from steered.place import RESOLVER4

NAMES = 10_000
LEASE_S = 60
OTHERS = ("ebpf", "nft-lease", "iptables-legacy")
CLIENT = Path(__file__).parents[1] / "steered/many.py"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def node() -> Iterator[Namespace]:
    with node_and_world() as (node, _):
        yield node
        empty(node)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["nft", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_no_fresh_name_is_told_before_its_address_is_steered(node: Namespace, backend: str) -> None:
    """N12, N14: every element is in the kernel's set before the client has its answer."""
    agent = Agent(node, backend=backend, lease_s=LEASE_S)
    try:
        agent.do("open")
        agent.do("learn", [RESOLVER4, "*.many.example"])
        agent.do("activate")
        told = json.loads(node.run(sys.executable, "-P", str(CLIENT), RESOLVER4, str(NAMES)))

        assert told == {"agent": NAMES}
        assert agent.do("addresses") == NAMES
    finally:
        agent.close()
