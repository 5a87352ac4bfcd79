"""What each scene of the demo claims, judged by what its witnesses say.

The witnesses are the origin's own log, the agent's status, the node's kernel, and the client. Pure: nothing
is read or printed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ..image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a witness said, whether that is what the scene claims, and what it should have said."""

    said: str
    holds: bool
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a client of this machine has to fetch of an image: blobs, and their bytes together."""

    blobs: int
    size_bytes: int

    @classmethod
    def of(cls, image: Image) -> Self:
        digests = {image.contents.config, *image.contents.layers}
        return cls(blobs=len(digests), size_bytes=sum(image.sizes[digest] for digest in digests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the registry logged during a scene, with its token service and its blob host."""

    connections: int
    requests: int
    tag_checks: int  # requests for a manifest that send none: HEAD
    blobs: int  # answered with a blob's bytes
    sent_bytes: int  # of manifests and blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What the agent counted: in a scene, or since its start. `stored_bytes` is what it has on disk now."""

    hits: int
    misses: int
    stale: int
    saved_bytes: int
    stored_bytes: int

    def since(self, before: Cache) -> Cache:
        return Cache(
            hits=self.hits - before.hits,
            misses=self.misses - before.misses,
            stale=self.stale - before.stale,
            saved_bytes=self.saved_bytes - before.saved_bytes,
            stored_bytes=self.stored_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is left of the agent on the node after it was killed."""

    rules: tuple[str, ...]  # those that redirect
    processes: tuple[str, ...]
    status_answers: bool


def brought(client: str, *, as_published: bool, complaint: str = "") -> Claim:
    """The client has exactly what was published."""
    return Claim(
        said=f"{client} has every byte as it was published"
        if as_published
        else f"{client}: {complaint or 'other content than was published'}",
        holds=as_published,
        expected="the published image, by its digests",
    )


def started(*, steering: bool, hosts: int, rules: int) -> tuple[Claim, ...]:
    """The agent steers, by rules that are in the kernel."""
    return (
        Claim(
            said=f"the agent's status: {'steering' if steering else 'not steering'}, {hosts} registry hosts",
            holds=steering and hosts > 0,
            expected="steering",
        ),
        Claim(
            said=f"the node's kernel: {rules} rules that redirect",
            holds=rules > 0,
            expected="some",
        ),
    )


def first_pull(wanted: Wanted, origin: Origin, cache: Cache) -> tuple[Claim, ...]:
    """Everything came from the registry, once, and is stored now."""
    return (
        Claim(
            said=f"the registry's log: {blobs(origin.blobs)}, {size(origin.sent_bytes)} sent",
            holds=origin.blobs == wanted.blobs and origin.sent_bytes >= wanted.size_bytes,
            expected=f"each of {blobs(wanted.blobs)} once",
        ),
        Claim(
            said=f"the agent's status: {cache.misses} misses, {cache.hits} hits;"
            f" {size(cache.stored_bytes)} in the cache",
            holds=cache.misses >= wanted.blobs
            and cache.hits == 0
            and cache.stored_bytes >= wanted.size_bytes,
            expected=f"misses only, and {size(wanted.size_bytes)} in the cache",
        ),
    )


def second_pull(wanted: Wanted, origin: Origin, cache: Cache) -> tuple[Claim, ...]:
    """The registry was asked whether the tag has moved, and sent nothing."""
    return (
        Claim(
            said=f"the registry's log: {requests(origin.tag_checks)} about the tag,"
            f" {size(origin.sent_bytes)} of content sent",
            holds=origin.tag_checks == 1 and origin.sent_bytes == 0,
            expected="1 request about the tag, and nothing sent",
        ),
        _served_from_cache(wanted, cache),
    )


def offline_pull(wanted: Wanted, origin: Origin, cache: Cache, *, other_node: str) -> tuple[Claim, ...]:
    """It came from the cache, while nobody else can pull it. `other_node` says why not, or nothing."""
    return (
        Claim(
            said=f"the other node, without Tidegate: {other_node or 'it can pull the image'}",
            holds=bool(other_node),
            expected="a failed pull: the registry is unplugged",
        ),
        Claim(
            said=f"the registry's log: {origin.connections} connections, {requests(origin.requests)}",
            holds=origin.connections == 0 and origin.requests == 0,
            expected="nothing: it is unplugged",
        ),
        _served_from_cache(wanted, cache),
        Claim(
            said=f"the agent's status: {cache.stale} answered without the registry's word (stale)",
            holds=cache.stale > 0,
            expected="the tag at least",
        ),
    )


def killed(remains: Remains, *, gone_s: float) -> tuple[Claim, ...]:
    """Nothing redirects any more, and nothing runs."""
    return (
        Claim(
            said=f"the node's kernel: {f'{len(remains.rules)} rules' if remains.rules else 'no rule'}"
            f" that redirects, {gone_s * 1000:.0f} ms later",
            holds=not remains.rules,
            expected="no rule that redirects",
        ),
        Claim(
            said=f"the node's processes: {', '.join(remains.processes) or 'none of Tidegate'}",
            holds=not remains.processes,
            expected="none of Tidegate",
        ),
        Claim(
            said=f"tidegate status: {'an agent answers' if remains.status_answers else 'no agent answers'}",
            holds=not remains.status_answers,
            expected="no agent",
        ),
    )


def direct_pull(wanted: Wanted, origin: Origin) -> Claim:
    """The registry sent everything again, although the cache of the dead agent has it."""
    return Claim(
        said=f"the registry's log: {blobs(origin.blobs)}, {size(origin.sent_bytes)} sent",
        holds=origin.blobs == wanted.blobs and origin.sent_bytes >= wanted.size_bytes,
        expected=f"each of {blobs(wanted.blobs)} once more",
    )


def _served_from_cache(wanted: Wanted, cache: Cache) -> Claim:
    return Claim(
        said=f"the agent's status: {cache.hits} hits, {cache.misses} misses;"
        f" {size(cache.saved_bytes)} from the cache",
        holds=cache.misses == 0 and cache.saved_bytes >= wanted.size_bytes,
        expected=f"no miss, and {size(wanted.size_bytes)} from the cache",
    )


def size(count: int) -> str:
    """Rounded for reading, in decimal units as registries print them."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def blobs(count: int) -> str:
    return "1 blob" if count == 1 else f"{count} blobs"


def requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
