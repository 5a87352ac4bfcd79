"""An agent in front of a foreign tier: squid set up as docker-registry-proxy is, whole, hanging and dead."""

from __future__ import annotations

import signal
from ipaddress import ip_address

import pytest

from lab import Agent, Fault, Lab, Node, Pull, Recipe, Registry, Tier, until

SMALL = "docker.io/library/small:1"
LAYER = Recipe(name="tiered", layers=(3_000_000,), with_busybox=False)
PACE = 1_000_000  # bytes a second: a layer takes three seconds
PATIENCE_S = 3.0
LEEWAY_S = 2.0  # for a machine that others use too


@pytest.fixture
def tier(lab: Lab) -> Tier:
    return lab.add_tier()


def steered(node: Node, *tiers: Tier, more: str = "") -> Agent:
    """An agent that steers, with these tiers before the registries."""
    upstreams = (f'[[upstream]]\nkind = "connect"\nurl = "{tier.url}"\n{more}\n' for tier in tiers)
    node.install_trust()
    return node.start_agent("\n".join(upstreams)).wait_steering()


def address_of(node: Node) -> str:
    return str(node.interfaces[0].ip)


def peers(registry: Registry, *resources: str) -> set[str]:
    """Who asked the registry for such things, by their IPv4 address."""
    found = (ip_address(request.peer[0]) for request in registry.requests_for(*resources))
    return {str(getattr(each, "ipv4_mapped", None) or each) for each in found}


def contents_carried(tier: Tier) -> list[str]:
    """The URLs of what the tier was asked for by GET."""
    return [each.url for each in tier.carried if each.method == "GET" and "/v2/" in each.url]


def test_a_cold_pull_comes_through_the_tier_and_a_warm_one_needs_nobody(
    lab: Lab, node: Node, registry: Registry, tier: Tier
) -> None:
    """T2, C8: the tier's CA is fetched and pinned at the first use, and is not in the system's store."""
    agent = steered(node, tier.start())

    cold = node.pull("skopeo", SMALL)
    assert cold.contents == lab.images[SMALL].contents, cold.stderr
    assert peers(registry, "bytes") == {address_of(tier)}
    assert contents_carried(tier)
    pinned = f"/var/lib/tidegate/upstreams/{address_of(tier)}-3128.pem"
    assert node.path(pinned).read_bytes() == tier.authority.anchor
    assert tier.authority.anchor.decode() not in node.path("/etc/ssl/certs/ca-certificates.crt").read_text()

    registry.forget()
    tier.forget()
    warm = node.pull("podman", SMALL)
    assert warm.contents == lab.images[SMALL].contents, warm.stderr
    assert contents_carried(tier) == []
    assert registry.requests_for("bytes") == []
    metrics = agent.metrics()
    assert metrics[f'tidegate_upstream_up{{kind="connect",url="{tier.url}"}}'] == 1
    assert metrics['tidegate_upstream_requests_total{kind="connect",status="2xx"}'] > 0
    assert metrics['tidegate_upstream_requests_total{kind="connect",status="unreachable"}'] == 0


def test_a_proxy_that_does_not_intercept_carries_pulls_where_going_direct_is_denied(
    lab: Lab, node: Node, registry: Registry, tier: Tier
) -> None:
    """T9: the proxy of a company; it needs no CA, and all that the agent asks for goes through it."""
    agent = steered(node, tier.start(intercepts=False), more='fallback = "deny"')

    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert peers(registry, "ping", "manifest", "blob", "bytes") == {address_of(tier)}
    agent.stop()  # a tunnel is logged when it ends
    until(lambda: {each.method for each in tier.carried} == {"CONNECT"}, "tunnels alone were carried")


def test_a_tier_that_hangs_costs_a_pull_three_seconds_at_most(
    lab: Lab, node: Node, registry: Registry, tier: Tier
) -> None:
    """I1, T6: SIGSTOP; the pull ends well, by going direct."""
    plain = lab.add_node("plain")
    direct = plain.pull("skopeo", SMALL)
    agent = steered(node, tier.start())
    until(lambda: node.path("/var/lib/tidegate/upstreams").exists(), "the tier was met")
    tier.kill(signal.SIGSTOP)

    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert pull.duration_s < direct.duration_s + PATIENCE_S + LEEWAY_S
    status = next(each for each in agent.status()["upstreams"] if each["kind"] == "connect")
    assert not status["healthy"]
    assert status["reason"]
    tier.kill(signal.SIGCONT)
    until(
        lambda: all(each["healthy"] for each in agent.status()["upstreams"]),
        "the tier is noticed",
        within_s=30,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_tier_that_is_lost_in_the_middle_of_a_layer_is_not_missed(
    node: Node, registry: Registry, tier: Tier, number: signal.Signals
) -> None:
    """I1, C12: the body goes on at the byte where it stopped, from the registry."""
    image = registry.publish(LAYER, "library/tiered")
    registry.fault(Fault(on="bytes", matching=image.largest_layer[7:], bytes_per_s=PACE, times=None))
    steered(node, tier.start())
    pulling = node.start_pull("podman", "docker.io/library/tiered:1")
    partial = node.path(f"/var/lib/tidegate/partial/{image.largest_layer[7:]}")
    until(lambda: partial.exists() and partial.stat().st_size > PACE // 2, "bytes arrive", within_s=20)
    tier.kill(number)

    pull = pulling.wait(60)

    assert pull.contents == image.contents, pull.stderr
    asked = [request for request in registry.requests_for("bytes") if image.largest_layer[7:] in request.path]
    resumed = [dict(request.headers).get("Range", "") for request in asked if _is_from(node, request.peer[0])]
    assert resumed
    assert all(each.startswith("bytes=") for each in resumed)


def test_of_two_tiers_one_may_die_during_four_pulls(lab: Lab, registry: Registry) -> None:
    """T6, I1: they share by digest; what the dead one was sending comes from the other, all four end well."""
    first, second = (lab.add_tier(name).start() for name in ("tier", "tier2"))
    nodes = [lab.node, lab.add_node("other")]
    images = {
        f"library/shared{at}": registry.publish(
            Recipe(name=f"shared{at}", layers=(2_000_000 + at,), with_busybox=False), f"library/shared{at}"
        )
        for at in range(4)
    }
    registry.fault(Fault(on="bytes", bytes_per_s=PACE, times=None))
    for node in nodes:
        steered(node, first, second)
    pulls = [
        (nodes[at % 2].start_pull("skopeo", f"docker.io/{name}:1"), image)
        for at, (name, image) in enumerate(images.items())
    ]
    until(lambda: len(peers(registry, "bytes")) == 2, "both tiers fetch", within_s=20)
    first.kill()

    for pulling, image in pulls:
        pull = pulling.wait(90)
        assert pull.contents == image.contents, pull.stderr
    assert peers(registry, "bytes") == {address_of(first), address_of(second)}


@pytest.mark.parametrize("tiers", [1, 2])
def test_with_every_tier_dead_pulls_go_direct(lab: Lab, node: Node, registry: Registry, tiers: int) -> None:
    """I1, T6, T10: the agent starts, steers and serves."""
    agent = steered(node, *(lab.add_tier(f"tier{at}") for at in range(tiers)))

    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert peers(registry, "bytes") == {address_of(node)}
    assert [each["healthy"] for each in agent.status()["upstreams"]] == [False] * tiers + [True]


def test_where_going_direct_is_denied_a_dead_tier_is_named_and_what_is_cached_is_served(
    lab: Lab, node: Node, registry: Registry, tier: Tier
) -> None:
    """T6, C7: the error says which tier and what to type; a registry is never asked directly."""
    steered(node, tier.start(), more='fallback = "deny"')
    assert _is_whole(node.pull("skopeo", SMALL), lab)
    tier.kill()
    registry.forget()

    assert _is_whole(node.pull("podman", SMALL), lab)
    refused = node.pull("skopeo", "docker.io/library/single:1")

    assert not refused.ok
    url = "https://registry-1.docker.io/v2/library/single/manifests/1"
    said = node.run(["curl", "-sS", "--max-time", "20", url]).or_raise().stdout
    assert f"connect {tier.url}: " in said
    assert "going direct is denied" in said
    assert "take fallback = " in said
    assert registry.requests_for("manifest", "blob", "bytes", "ping") == []


def _is_whole(pull: Pull, lab: Lab) -> bool:
    return pull.contents == lab.images[SMALL].contents


def _is_from(node: Node, peer: str) -> bool:
    return ip_address(peer) in {interface.ip for interface in node.interfaces}
