"""The scenes of the demo, in order: what happens in each, and what its witnesses then say.

Each leaves the lab as the next one needs it. Nothing here prints, and no scene repeats what failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..agent import Agent
from ..client import Pull
from ..fault import Fault
from ..image import Image, Recipe
from ..lab import Lab
from ..node import Node
from . import evidence
from .evidence import Cache, Claim, Origin, Remains, Wanted

T = TypeVar("T")

REFERENCE = "docker.io/library/demo:1"
RECIPE = Recipe(name="demo", layers=(40 << 20,))
BYTES_PER_S = 20_000_000
GONE_WITHIN_S = 5.0
SETTLED_WITHIN_S = 3.0  # the registry logs an answer, and the agent counts it, just after the client has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a scene ended. Byte counts are None where no image was pulled, or where no agent counts."""

    duration_s: float
    claims: tuple[Claim, ...]
    from_registry_bytes: int | None = None
    from_cache_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`happens` and `proves` are for the newcomer; `detail` is the test that examines the same claim."""

    name: str
    happens: str
    proves: str
    detail: str
    play: Callable[[Stage], Outcome]


class Stage:
    """The lab with an image in its registry; the agent once it was started."""

    def __init__(self, lab: Lab, settings: Sequence[str]):
        self.lab = lab
        self.settings = settings
        self.node: Node = lab.node
        self.other_node: Node = lab.nodes[1]
        self.image: Image = lab.registry.publish(RECIPE, "library/demo")
        self.wanted = Wanted.of(self.image)
        lab.registry.fault(Fault(on="bytes", bytes_per_s=BYTES_PER_S, times=None))
        self.agent: Agent | None = None

    @property
    def running(self) -> Agent:
        if self.agent is None:
            raise RuntimeError("no agent was started")
        return self.agent

    def pull(self, client: str) -> tuple[Pull, Claim]:
        """Pull with a client that has nothing of its own yet; the registry's log starts anew."""
        self.lab.registry.forget()
        pull = self.node.pull(client, REFERENCE)
        claim = evidence.brought(
            client, as_published=pull.brought(self.image), complaint=last_line(pull.stderr)
        )
        return pull, claim

    def origin(self) -> Origin:
        registry = self.lab.registry
        requests = registry.requests
        return Origin(
            connections=len(registry.connections),
            requests=len(requests),
            tag_checks=sum(
                1 for request in requests if (request.method, request.resource) == ("HEAD", "manifest")
            ),
            blobs=sum(1 for request in requests if request.resource == "bytes"),
            sent_bytes=sum(
                request.sent_bytes or 0 for request in requests if request.resource in ("manifest", "bytes")
            ),
        )

    def cache(self) -> Cache:
        told = self.running.status()["cache"]
        return Cache(
            hits=told["hits"],
            misses=told["misses"],
            stale=told["stale"],
            saved_bytes=told["saved_bytes"],
            stored_bytes=told["bytes"],
        )


def start(stage: Stage) -> Outcome:
    """The node trusts its authority, then the agent runs."""
    stage.node.install_trust()
    arguments = [part for setting in stage.settings for part in ("--set", setting)]
    started = time.monotonic()
    stage.agent = stage.node.start_agent(args=arguments).wait_steering()
    duration_s = time.monotonic() - started
    status = stage.agent.status()
    return Outcome(
        duration_s=duration_s,
        claims=evidence.started(
            steering=bool(status["steering"]["active"]),
            hosts=len(status["hosts"]),
            rules=len(_redirecting(stage.node)),
        ),
    )


def cold(stage: Stage) -> Outcome:
    """skopeo, with an empty cache."""
    before = stage.cache()
    pull, whole = stage.pull("skopeo")

    def judge(origin: Origin, cache: Cache) -> Iterable[Claim]:
        return (whole, *evidence.first_pull(stage.wanted, origin, cache))

    return _judged(stage, before, pull, judge)


def warm(stage: Stage) -> Outcome:
    """podman, another client with storage of its own."""
    before = stage.cache()
    pull, whole = stage.pull("podman")

    def judge(origin: Origin, cache: Cache) -> Iterable[Claim]:
        return (whole, *evidence.second_pull(stage.wanted, origin, cache))

    return _judged(stage, before, pull, judge)


def unplugged(stage: Stage) -> Outcome:
    """The registry, its token service and its blob host lose their cable."""
    stage.lab.network.unplug(stage.lab.internet)
    elsewhere = stage.other_node.pull("skopeo", REFERENCE)
    before = stage.cache()
    pull, whole = stage.pull("skopeo")  # the registry's log begins here, after the other node's attempt

    def judge(origin: Origin, cache: Cache) -> Iterable[Claim]:
        reason = "" if elsewhere.ok else last_line(elsewhere.stderr).rpartition(": ")[2].strip('"')
        return (whole, *evidence.offline_pull(stage.wanted, origin, cache, other_node=reason))

    return _judged(stage, before, pull, judge)


def kill(stage: Stage) -> Outcome:
    """SIGKILL; of the supervisor first, or it would start another agent at once."""
    stage.lab.network.plug_back(stage.lab.internet)
    with stage.node.process(stage.running.pid) as agent:
        stage.running.supervisor.kill()
        agent.kill()
        killed = time.monotonic()
    deadline = killed + GONE_WITHIN_S
    while (rules := _redirecting(stage.node)) and time.monotonic() < deadline:
        pass  # asking the kernel takes its time already
    gone_s = time.monotonic() - killed
    while (processes := _of_tidegate(stage.node)) and time.monotonic() < deadline:
        time.sleep(0.01)
    remains = Remains(
        rules=tuple(rules),
        processes=tuple(processes),
        status_answers=stage.node.tidegate("status").ok,
    )
    return Outcome(duration_s=gone_s, claims=evidence.killed(remains, gone_s=gone_s))


def direct(stage: Stage) -> Outcome:
    """skopeo again: what the dead agent has in its cache comes from the registry."""
    pull, whole = stage.pull("skopeo")
    origin, claims = _settled(
        stage.origin, lambda origin: (whole, evidence.direct_pull(stage.wanted, origin))
    )
    return Outcome(duration_s=pull.duration_s, claims=claims, from_registry_bytes=origin.sent_bytes)


SCENES = (
    Scene(
        name="The agent starts",
        happens="On the node: tidegate trust install, then tidegate agent. No client is configured.",
        proves="There is nothing else to set up.",
        detail="tests/netns/test_start.py",
        play=start,
    ),
    Scene(
        name="Cold pull, skopeo",
        happens=f"skopeo copies docker://{REFERENCE}; the cache is empty.",
        proves="A client that knows nothing of the cache goes through it.",
        detail="tests/netns/test_pulls.py",
        play=cold,
    ),
    Scene(
        name="Warm pull, podman",
        happens="podman pulls the same image. It shares nothing with skopeo but the node.",
        proves="What one client pulled, the next one has; the tag costs one HEAD request.",
        detail="tests/netns/test_pulls.py",
        play=warm,
    ),
    Scene(
        name="Registry unplugged, skopeo",
        happens="The registry loses its cable; a second node, without Tidegate, tries too.",
        proves="Images that are cached can be pulled while the registry is away.",
        detail="tests/netns/test_pulls.py",
        play=unplugged,
    ),
    Scene(
        name="SIGKILL",
        happens="The registry is back. kill -9 of the supervisor and the agent: no goodbye, no restart.",
        proves="The redirection belongs to the process: the kernel takes it away with it.",
        detail="tests/netns/test_deaths.py",
        play=kill,
    ),
    Scene(
        name="Direct pull, skopeo",
        happens="The same pull, at once, on the same node. Nothing was repaired or configured.",
        proves="A dead agent costs the caching, not the pull.",
        detail="tests/netns/test_deaths.py",
        play=direct,
    ),
)


def _judged(
    stage: Stage, before: Cache, pull: Pull, judge: Callable[[Origin, Cache], Iterable[Claim]]
) -> Outcome:
    (origin, cache), claims = _settled(
        lambda: (stage.origin(), stage.cache().since(before)), lambda seen: judge(*seen)
    )
    return Outcome(
        duration_s=pull.duration_s,
        claims=claims,
        from_registry_bytes=origin.sent_bytes,
        from_cache_bytes=cache.saved_bytes,
    )


def _settled(look: Callable[[], T], judge: Callable[[T], Iterable[Claim]]) -> tuple[T, tuple[Claim, ...]]:
    """What was seen, and its claims, once all of them hold or the time for that is over."""
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while True:
        seen = look()
        claims = tuple(judge(seen))
        if all(claim.holds for claim in claims) or time.monotonic() > deadline:
            return seen, claims
        time.sleep(0.01)


def _redirecting(node: Node) -> list[str]:
    """The node's rules that send a connection or a look-up elsewhere."""
    ruleset = node.run(["nft", "list", "ruleset"]).or_raise().stdout
    return [line.strip() for line in ruleset.splitlines() if "redirect" in line or "@alive" in line]


def _of_tidegate(node: Node) -> list[str]:
    return [line for line in node.processes().values() if "tidegate agent" in line]


def last_line(text: str) -> str:
    """The last line of what a client printed: its reason, when it failed."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
