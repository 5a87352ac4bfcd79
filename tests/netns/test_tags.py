"""How long tags are believed, who may still ask for them, and what rate limits change about that.

What the registry was asked is told by its own log; rate limits are header fields that the lab's front adds.
"""

from __future__ import annotations

import pytest

from lab import SINGLE, SMALL, Agent, Fault, Image, Lab, Node, Pull, Registry
from lab.agent import CONFIG
from netns.test_push import alice, built, push, stored  # noqa: F401 (fixtures)

HUB = "https://registry-1.docker.io"
MOVED = "docker.io/library/moved:1"
HOUR = '[[tags]]\nmatch = "1|stable"\nfresh_for = "1h"\n'
HERD = 8


def started(node: Node, config: str = "") -> Agent:
    node.install_trust()
    return node.start_agent(config).wait_steering()


def pulled(pull: Pull, image: Image) -> bool:
    """The pull ended well with exactly the image's bytes."""
    assert pull.ok, pull.stderr
    assert pull.contents == image.contents
    return True


def limited(remaining: int, limit: int = 100) -> Fault:
    """What Docker Hub adds to its answers."""
    told = {"ratelimit-limit": f"{limit};w=21600", "ratelimit-remaining": f"{remaining};w=21600"}
    return Fault(on="manifest", headers=told, times=None)


def asked(registry: Registry) -> list[str]:
    return [request.method for request in registry.requests_for("manifest")]


# Tiers


def test_a_tag_is_served_without_asking_for_as_long_as_its_tier_says(node: Node, registry: Registry) -> None:
    """C5: within `fresh_for` not even a HEAD; after a reload without the tier it is asked for again."""
    agent = started(node, HOUR)
    old = registry.publish(SMALL, "library/moved")
    assert pulled(node.pull("skopeo", MOVED), old)
    new = registry.publish(SINGLE, "library/moved")
    registry.forget()

    assert pulled(node.pull("podman", MOVED), old)
    assert asked(registry) == []
    node.write(CONFIG, "")
    node.tidegate("reload", "--config", CONFIG).or_raise()
    assert pulled(node.pull("podman", MOVED), new)
    assert agent.status()["cache"]["hits"]


@pytest.mark.parametrize(
    "tier",
    ['match = "stable"', 'match = "1"\nregistry = "quay.io"', 'match = "1"\nrepository = "team/*"'],
)
def test_a_tier_is_for_its_tags_alone(node: Node, registry: Registry, tier: str) -> None:
    """C5, C6: by tag, registry and repository; others are asked for at each use."""
    started(node, f'[[tags]]\n{tier}\nfresh_for = "1h"\n')
    old = registry.publish(SMALL, "library/moved")
    assert pulled(node.pull("skopeo", MOVED), old)
    new = registry.publish(SINGLE, "library/moved")

    assert pulled(node.pull("podman", MOVED), new)


def test_a_push_through_us_ends_what_a_tier_believes(node: Node, registry: Registry, stored: object) -> None:  # noqa: F811
    """C5, C6, C18: whoever pushed a tag gets what was pushed."""
    started(node, HOUR)
    alice = registry.users["alice"]  # noqa: F811
    first, second = built(node, SMALL), built(node, SINGLE)
    push(node, alice, first[0], "alice/pushed")
    assert pulled(node.pull("skopeo", "docker.io/alice/pushed:1"), first[1])
    push(node, alice, second[0], "alice/pushed")

    assert pulled(node.pull("podman", "docker.io/alice/pushed:1"), second[1])


def test_those_who_ask_for_a_tag_at_the_same_time_share_one_head(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C6, C11, C19: a hundred pods that restart at once cost what one does."""
    started(node)
    assert pulled(node.pull("skopeo", "docker.io/library/small:1"), lab.images["docker.io/library/small:1"])
    registry.fault(Fault(on="manifest", delay_s=1.0, times=None))
    registry.forget()
    url = f"{HUB}/v2/library/small/manifests/1"
    accept = "Accept: application/vnd.oci.image.index.v1+json"
    one = f"curl -sS -o /dev/null -w '%{{http_code}}\\n' -H '{accept}' {url} &"
    codes = node.run(["sh", "-c", f"{one * HERD} wait"]).or_raise().stdout.split()

    assert codes == ["200"] * HERD
    assert asked(registry) == ["HEAD"]


# Rate limits


def test_what_is_left_of_a_rate_limit_is_told(node: Node, registry: Registry, lab: Lab) -> None:
    """C19: in status and as a metric, for the registry that said it."""
    agent = started(node)
    registry.fault(limited(76))
    assert pulled(node.pull("skopeo", "docker.io/library/small:1"), lab.images["docker.io/library/small:1"])

    told = {entry["registry"]: entry for entry in agent.status()["rate_limits"]}
    assert (told["docker.io"]["remaining"], told["docker.io"]["limit"]) == (76, 100)
    assert told["docker.io"]["window_s"] == 21600
    assert agent.metrics()['tidegate_ratelimit_remaining{registry="docker.io"}'] == 76
    assert "76 of 100 left in 6:00:00" in node.tidegate("status").stdout


def test_the_last_part_of_a_limit_is_not_spent_on_what_is_cached(node: Node, registry: Registry) -> None:
    """C19, C7: a tag that moved is served as it was; with enough left it is fetched."""
    started(node)
    old = registry.publish(SMALL, "library/moved")
    assert pulled(node.pull("skopeo", MOVED), old)
    new = registry.publish(SINGLE, "library/moved")
    registry.fault(limited(2))
    registry.forget()
    few = node.pull("podman", MOVED)
    methods = asked(registry)
    registry.heal()
    registry.fault(limited(90))

    assert pulled(few, old)
    assert "GET" not in methods
    assert pulled(node.pull("podman", MOVED), new)


def test_a_registry_that_said_when_to_ask_again_is_not_asked_before(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C19, C7: what is cached is served without a question, after the first 429."""
    agent = started(node)
    image = lab.images["docker.io/library/small:1"]
    assert pulled(node.pull("skopeo", "docker.io/library/small:1"), image)
    registry.fault(Fault(on="manifest", status=429, headers={"Retry-After": "600"}, times=None))
    first = node.pull("skopeo", "docker.io/library/small:1")
    registry.forget()
    second = node.pull("podman", "docker.io/library/small:1")

    assert pulled(first, image)
    assert pulled(second, image)
    assert asked(registry) == []
    (entry,) = (each for each in agent.status()["rate_limits"] if each["not_before"])
    assert entry["registry"] == "docker.io"


@pytest.mark.parametrize("client", ["ctr", pytest.param("skopeo", marks=pytest.mark.slow)])
def test_a_short_retry_after_is_waited_for_inside(
    lab: Lab, node: Node, registry: Registry, client: str
) -> None:
    """C19: containerd asks a limited registry six times in 5 ms and gives up; nothing is cached here."""
    node.install_trust()
    node.start_daemon_of(client)
    agent = node.start_agent().wait_steering()
    registry.fault(Fault(on="manifest", status=429, headers={"Retry-After": "1"}, times=2))
    registry.forget()

    assert pulled(node.pull(client, "docker.io/library/small:1"), lab.images["docker.io/library/small:1"])
    assert [request.status for request in registry.requests_for("manifest")].count(429) == 2
    assert '"status":429' not in agent.log  # no client was told
