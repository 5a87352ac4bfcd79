"""What the operators' API answers, as it stands in its JSON (docs/operations/api.md): stable, and versioned.

Fields may be added within /v1; none is renamed, removed or given another meaning.
"""

from typing import Literal

import msgspec

State = Literal["complete", "partial", "unknown"]
Outlook = Literal["hit", "revalidate", "miss", "stale", "not cached"]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A cached tag, in one media type, or a manifest without one (`tag` is "" then).

    `bytes` are those in the store, `size_bytes` all that are known of. `state` is unknown where the manifest
    itself is absent; of an index only the platforms count of which something is there.
    """

    reference: str
    registry: str
    repository: str
    tag: str
    digest: str
    media_type: str
    state: State
    blobs: int
    blobs_present: int
    platforms: list[str]
    size_bytes: int
    bytes: int
    last_use: str | None
    checked_at: str | None


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """One page; `next` is what to give as `after`, null at the end."""

    images: list[Image]
    next: str | None


class RegistryStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one registry is known to hold of the store; what several hold counts for each."""

    registry: str
    blobs: int
    manifests: int
    bytes: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The store now, and requests since the start."""

    blobs: int
    bytes: int
    max_bytes: int
    evicted_bytes: int
    unfinished_blobs: int
    unfinished_bytes: int
    tags: int
    registries: list[RegistryStats]
    hits: int
    misses: int
    stale: int
    saved_bytes: int


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """`kept` is what other cached images need; `in_use` of the removed are still being read."""

    tags: list[str]
    removed_blobs: int
    freed_bytes: int
    kept_blobs: int
    kept_bytes: int
    in_use: int


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something that decides what the next pull gets; `ok` when it speaks for the cache."""

    about: str
    ok: bool
    detail: str


class BlobFact(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the image: `present_bytes` of it are in the store, finished or not."""

    digest: str
    media_type: str
    size_bytes: int
    state: Literal["present", "partial", "absent"]
    present_bytes: int
    platform: str


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Why the next pull would be answered as `outlook` says, and what to type."""

    reference: str
    outlook: Outlook
    because: str
    next_step: str
    facts: list[Fact]
    blobs: list[BlobFact]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import stored: `blobs` are new ones; `remarks` say what was left out."""

    images: list[str]
    blobs: int
    bytes: int
    remarks: list[str]


class PullOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/cache/pull`; without `platforms` it is this machine's."""

    refs: list[str]
    platforms: list[str] = []
    all_platforms: bool = False


class PurgeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/cache/purge`: one of both."""

    ref: str = ""
    all: bool = False


class PullEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the answer to a pull. `event` tells which fields there are.

    `manifest`: the image is known now, with its `digest`. `blob`: `bytes` of `size_bytes` are here; `state`
    says how. `done` and `failed` end a reference, `end` the whole: without it the agent was
    stopped.
    """

    event: Literal["manifest", "blob", "done", "failed", "end"]
    ref: str = ""
    digest: str = ""
    bytes: int = 0
    size_bytes: int = 0
    state: Literal["", "waiting", "fetching", "cached", "done"] = ""
    cause: str = ""
    next_step: str = ""
