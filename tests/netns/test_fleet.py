"""A fleet: agents in front of central tiers of our own, by both protocols; a tier dies, or all of them."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

import pytest

from lab import Agent, Central, Fault, Lab, Node, Recipe, Registry, until

SMALL = "docker.io/library/small:1"
KINDS = ("central", "connect")


def steered(node: Node, *tiers: Central, kind: str = "central") -> Agent:
    """An agent with these tiers before the registries; their authority is pinned, by file or at first use."""
    tables = []
    for tier in tiers:
        if kind == "central":
            node.write(f"/etc/tidegate/{tier.name}.pem", tier.ca)
            ca = f'ca = "/etc/tidegate/{tier.name}.pem"\n'
        else:
            ca = ""
        url = tier.mirror if kind == "central" else tier.proxy
        tables.append(f'[[upstream]]\nkind = "{kind}"\nurl = "{url}"\n{ca}')
    node.install_trust()
    return node.start_agent("\n".join(tables)).wait_steering()


def address_of(node: Node) -> str:
    return str(node.interfaces[0].ip)


def peers(registry: Registry, *resources: str) -> set[str]:
    found = (ip_address(request.peer[0]) for request in registry.requests_for(*resources))
    return {str(getattr(each, "ipv4_mapped", None) or each) for each in found}


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_pulls_cold_through_our_tier_and_warm_without_it(
    lab: Lab, node: Node, registry: Registry, kind: str
) -> None:
    """T2, T3, C8: what one node pulled another finds in the tier, with the registry dark."""
    central = lab.add_central().start()
    steered(node, central, kind=kind)

    cold = node.pull("skopeo", SMALL)
    assert cold.contents == lab.images[SMALL].contents, cold.stderr
    assert peers(registry, "bytes") == {address_of(central)}

    registry.forget()
    other = lab.add_node("other")
    steered(other, central, kind=kind)
    second = other.pull("podman", SMALL)
    assert second.contents == lab.images[SMALL].contents, second.stderr
    assert registry.requests_for("bytes") == []

    central.kill()
    warm = node.pull("podman", SMALL)
    assert warm.contents == lab.images[SMALL].contents, warm.stderr
    assert registry.requests_for("bytes") == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_pulled_by_two_clients_on_each_of_two_nodes_reaches_the_registry_once(
    lab: Lab, node: Node, registry: Registry, kind: str
) -> None:
    """C11, T6: the tiers share by digest, agents and tiers each fetch once; every byte is sent once."""
    image = registry.publish(
        Recipe(name="once", layers=(2_000_000, 300_000), with_busybox=False), "library/once"
    )
    registry.forget()
    centrals = [lab.add_central(name).start() for name in ("central", "central2")]
    nodes = [node, lab.add_node("node2")]
    for each in nodes:
        steered(each, *centrals, kind=kind)

    pulling = [
        each.start_pull(client, "docker.io/library/once:1")
        for each in nodes
        for client in ("skopeo", "podman")
    ]
    pulls = [each.wait() for each in pulling]

    assert [pull.contents for pull in pulls] == [image.contents] * 4, [pull.stderr for pull in pulls]
    digests = (image.contents.config, *image.contents.layers)
    fetched = Counter(
        digest
        for request in registry.requests_for("bytes")
        for digest in digests
        if digest[7:] in request.path
    )
    assert fetched == dict.fromkeys(digests, 1)
    assert peers(registry, "bytes") <= {address_of(central) for central in centrals}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tier_that_is_killed_in_the_middle_of_four_cold_pulls_ends_none_of_them(
    lab: Lab, node: Node, registry: Registry, kind: str
) -> None:
    """T6, I1, C12: two nodes, two tiers; afterwards the other dies too, and pulls go direct."""
    images = {
        f"docker.io/library/shared{at}:1": registry.publish(
            Recipe(name=f"shared{at}", layers=(2_000_000 + at,), with_busybox=False), f"library/shared{at}"
        )
        for at in range(4)
    }
    late = registry.publish(Recipe(name="late", layers=(100_000,), with_busybox=False), "library/late")
    registry.fault(Fault(on="bytes", bytes_per_s=600_000, times=None))
    first, second = (lab.add_central(name).start() for name in ("central", "central2"))
    nodes = [node, lab.add_node("node2")]
    agents = [steered(each, first, second, kind=kind) for each in nodes]
    references = list(images)
    pulling = [nodes[at % 2].start_pull("podman", reference) for at, reference in enumerate(references)]

    def in_the_middle() -> bool:
        partial = first.path("/srv/tidegate-central/partial")
        return partial.exists() and any(each.stat().st_size > 200_000 for each in partial.iterdir())

    until(in_the_middle, "the first tier is sending", within_s=20)
    first.kill()
    pulls = [each.wait(60) for each in pulling]

    for pull, reference in zip(pulls, references, strict=True):
        assert pull.contents == images[reference].contents, pull.stderr
    assert all(agent.supervisor.running for agent in agents)
    registry.heal()
    second.kill()
    registry.forget()
    direct = node.pull("skopeo", "docker.io/library/late:1")
    assert direct.contents == late.contents, direct.stderr
    assert address_of(node) in peers(registry, "bytes")
