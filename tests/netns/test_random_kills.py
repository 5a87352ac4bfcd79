"""SIGKILL at random moments of concurrent cold pulls: what is stored is right, and so are the next pulls.

The moments come from a seed, which is printed; TIDEGATE_KILL_SEED=<seed> repeats it. Pulls that the kill met
may fail, as those of a client whose registry died do; none that starts after the restart may.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from lab import Agent, Fault, Image, Lab, Node, Pulling, Recipe, Registry
from lab.process import CommandFailed
from lab.stored import STATE, stored_sizes, wrong_in_the_store
from lab.waiting import until

SUPERVISOR_FORGIVES = 4  # kills within a minute
IMAGES_AT_ONCE = 2
CLIENTS = ("skopeo", "podman")
LATEST_S = 0.8
PARTIAL = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})(?:\..+)?")


def publish(registry: Registry, seed: int, rounds: int) -> Iterator[dict[str, Image]]:
    """Other images for each round, so that each is cold and no request is met by two kills."""
    for number in range(rounds):
        names = [f"killed-{seed % 10_000}-{number}-{which}" for which in range(IMAGES_AT_ONCE)]
        recipes = [
            Recipe(name=name, layers=(700_000, 200_000, 20_000), with_busybox=number % 2 == 0)
            for name in names
        ]
        yield {
            f"docker.io/library/{name}:1": registry.publish(recipe, f"library/{name}")
            for name, recipe in zip(names, recipes, strict=True)
        }


def start_all(node: Node, images: dict[str, Image]) -> list[Pulling]:
    """Several images at once, the first of them by both clients."""
    first, *others = images
    pulls = [(client, first) for client in CLIENTS] + [(CLIENTS[-1], reference) for reference in others]
    return [node.start_pull(client, reference) for client, reference in pulls]


def kill_at(node: Node, pid: int, moment: float) -> None:
    with node.process(pid) as process:
        until(lambda: time.monotonic() >= moment, "that moment", every_s=0.001)
        process.kill()


def wait_for_the_next_life(agent: Agent, before: int) -> int:
    """Until the supervisor has started another agent, which steers; its pid."""

    def steers() -> int:
        with suppress(CommandFailed):  # nobody listens in between
            status = agent.status()
            if status["steering"]["active"] and status["pid"] != before:
                return int(status["pid"])
        return 0

    return until(steers, "the supervisor started it again", within_s=30, every_s=0.05)


def unidentifiable(node: Node) -> Sequence[str]:
    names = [path.name for path in node.path(f"{STATE}/partial").iterdir()]
    return [name for name in names if not PARTIAL.fullmatch(name)]


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(10, marks=pytest.mark.timeout(240)),
        pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_kill_leaves_nothing_wrong_in_the_store(
    node: Node, lab: Lab, registry: Registry, kills: int
) -> None:
    """C3, C13, I1, I2: every blob hashes to its name, nothing unknown lies there, and pulls are right."""
    seed = int(os.environ.get("TIDEGATE_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed: {seed}")  # noqa: T201 (shown by pytest -s and on failure)
    moments = random.Random(seed)
    node.install_trust()
    agent = node.start_agent().wait_steering()
    pid = agent.pid
    met = 0
    for number, images in enumerate(publish(registry, seed, kills)):
        if number and number % SUPERVISOR_FORGIVES == 0:
            agent.stop()
            agent = node.start_agent().wait_steering()
            pid = agent.pid
        registry.fault(Fault(on="bytes", bytes_per_s=2_000_000, times=None))
        pulls = start_all(node, images)
        kill_at(node, pid, time.monotonic() + moments.uniform(0, LATEST_S))
        met += sum(pull.process.running for pull in pulls)
        ended = [pull.wait() for pull in pulls]
        assert all(pull.contents == images[pull.reference].contents for pull in ended if pull.ok)
        registry.heal()
        pid = wait_for_the_next_life(agent, pid)
        assert wrong_in_the_store(node) == []
        assert unidentifiable(node) == []

        for pull in [pull.wait() for pull in start_all(node, images)]:
            assert pull.contents == images[pull.reference].contents, pull.stderr
        assert wrong_in_the_store(node) == []
    assert met > 0, "some kills met pulls"
    sizes = stored_sizes(node)
    until(
        lambda: agent.status()["cache"]["bytes"] == sum(sizes.values()), "all of it is counted", within_s=15
    )
