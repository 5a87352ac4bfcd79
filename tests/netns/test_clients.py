"""The packaged clients through the agent: what one of them pulled, each gets when the registry is dark.

They differ in how they ask (HEAD or GET for a tag, several sets of Accept, one token or two) and in who asks:
skopeo, podman and ctr are new processes for each pull; CRI (in containerd) and dockerd are daemons, started
after the CA of the agent was installed. Unconfigured otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab import Agent, Image, Lab, Node, Registry

CLIENTS = ("skopeo", "podman", "ctr", "cri", "dockerd")
SMALL_1 = "docker.io/library/small:1"
BLOB_HITS = 'registry_proxy_hits_total{type="blob"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Darkened:
    """A node whose agent saw one pull of `image`, by one client, before its registry went dark."""

    node: Node
    registry: Registry
    agent: Agent
    image: Image


def start_steered(lab: Lab) -> Agent:
    """An agent that steers on a node that trusts it, then the daemons, which read the trust store once."""
    node = lab.node
    node.install_trust()
    agent = node.start_agent().wait_steering()
    node.start_dockerd()  # and containerd
    return agent


@pytest.fixture(scope="module", params=CLIENTS)
def darkened(session_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Darkened]:
    """For each first client a new node and an empty cache; the second clients of a first one share both.

    That is sound: in the dark nothing can come into the cache any more.
    """
    session_lab.reset()
    # As dnsmasq has it by default: clients and agent ask again for each connection.
    session_lab.resolver.answer(ttl_s=0)
    agent = start_steered(session_lab)
    image = session_lab.images[SMALL_1]
    pull = session_lab.node.pull(request.param, SMALL_1)
    assert pull.brought(image), pull
    assert agent.metrics()[BLOB_HITS] == 0
    session_lab.registry.goes_dark()
    session_lab.registry.forget()
    yield Darkened(node=session_lab.node, registry=session_lab.registry, agent=agent, image=image)
    session_lab.registry.comes_back()


@pytest.mark.parametrize("second", CLIENTS)
def test_what_one_client_pulled_every_other_gets_in_the_dark(darkened: Darkened, second: str) -> None:
    """N3, C2, C4, C7: all of the image comes from the cache, and nobody outside is asked."""
    before = darkened.agent.metrics()[BLOB_HITS]

    pull = darkened.node.pull(second, SMALL_1)

    assert pull.brought(darkened.image), pull
    assert darkened.registry.connections == []
    assert darkened.registry.requests == []
    blobs = len(darkened.image.contents.layers) + 1
    assert darkened.agent.metrics()[BLOB_HITS] - before == blobs
