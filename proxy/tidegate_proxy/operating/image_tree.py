"""What an image consists of, and how much of it is in the store: an index, its manifests, their blobs.

Only what is stored can be read, so a manifest that is absent hides what is below it. Nobody is asked, and
nothing counts as used. Bounded in depth and in parts; a document that does not read has no parts.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tidegate_proxy.oci.descriptor import (
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    MalformedManifest,
    referenced_by,
)
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.manifest_type import manifest_type
from tidegate_proxy.oci.platform import Platform, platforms_of
from tidegate_proxy.storage.store import Store

MOST_PARTS = 20_000
_DEEPEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One manifest or blob; `platform` is what an index tells of it, `parts` what a stored manifest names."""

    descriptor: Descriptor
    present: bool
    platform: Platform | None = None
    parts: tuple["Part", ...] = field(default=(), repr=False)

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def is_manifest(self) -> bool:
        return self.descriptor.media_type in MANIFEST_TYPES

    @property
    def is_index(self) -> bool:
        return any(part.is_manifest for part in self.parts)

    def walk(self) -> Iterator["Part"]:
        """This part and all below it; what is named twice comes twice."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def distinct(self) -> Mapping[Digest, "Part"]:
        """All parts, each digest once."""
        return {part.digest: part for part in self.walk()}

    def missing(self) -> list["Part"]:
        """What is known to be absent, each once."""
        return [part for part in self.distinct().values() if not part.present]

    @property
    def complete(self) -> bool:
        return not self.missing()


async def image_tree(store: Store, digest: Digest, media_type: str | None = None) -> Part | None:
    """The tree below a stored manifest; None when that is absent, or no manifest."""
    return await store.run(_root, store, digest, media_type)


def named_by(store: Store, digest: Digest) -> tuple[Digest, ...]:
    """What a stored manifest itself names; nothing for what is no manifest. Blocks."""
    document = _read(store, digest)
    if document is None or (media_type := manifest_type(document)) is None:
        return ()
    with suppress(MalformedManifest):
        return tuple(part.digest for part in referenced_by(document, media_type))
    return ()


def _root(store: Store, digest: Digest, media_type: str | None) -> Part | None:
    document = _read(store, digest)
    if document is None:
        return None
    known = media_type if media_type in MANIFEST_TYPES else manifest_type(document)
    if known is None:
        return None
    descriptor = Descriptor(media_type=known, digest=digest, size_bytes=len(document))
    return _part(store, descriptor, None, _DEEPEST, [MOST_PARTS])


def _part(
    store: Store, descriptor: Descriptor, platform: Platform | None, depth: int, left: list[int]
) -> Part:
    left[0] -= 1
    present = store.holds(descriptor.digest)
    if not present or descriptor.media_type not in MANIFEST_TYPES or not depth or left[0] <= 0:
        return Part(descriptor=descriptor, present=present, platform=platform)
    document = _read(store, descriptor.digest)
    parts: tuple[Descriptor, ...] = ()
    platforms: Mapping[Digest, Platform | None] = {}
    if document is not None:
        with suppress(MalformedManifest):
            parts = referenced_by(document, descriptor.media_type)[: max(0, left[0])]
            platforms = platforms_of(document, descriptor.media_type)
    below = tuple(_part(store, part, platforms.get(part.digest), depth - 1, left) for part in parts)
    return Part(descriptor=descriptor, present=document is not None, platform=platform, parts=below)


def _read(store: Store, digest: Digest) -> bytes | None:
    """Blocks: called in one of the store's threads."""
    try:
        with store.path(digest).open("rb") as file:
            document = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        return None
    return document if len(document) <= MAX_MANIFEST_BYTES else None
