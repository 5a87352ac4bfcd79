"""Giving up what is cached: a tag, a digest, a repository, or everything.

Freed is what no other cached image references: manifests outside of what goes are read for what they name,
and those of them that go but are needed by another tag or repository stay, with all below them. A blob that
somebody reads keeps its bytes until they are read. Nothing here asks a registry.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.reference import Tag
from tidegate_proxy.operating.forms import Purged
from tidegate_proxy.operating.image_tree import Part, image_tree, named_by
from tidegate_proxy.operating.named import site_of
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries, Site
from tidegate_proxy.storage.tag_rows import TagRow, TagRows

_AT_ONCE = 256


class NothingCached(TidegateError):
    """There is nothing of that name."""


@dataclass(slots=True)
class _Going:
    """What is to go: tags by (registry, repository, tag), and parts by their digest."""

    tags: dict[tuple[str, str, str], None]
    parts: dict[Digest, Part | None]
    place: tuple[str, str]


@dataclass(slots=True)
class _Needed:
    """What of it stays, for anybody, and for something in the same repository: only that it holds then."""

    anywhere: set[Digest]
    here: set[Digest]


class Purging:
    """Gives up content; one purge at a time, or two could keep what each thinks the other needs."""

    def __init__(self, *, cache: PullThroughCache, rows: TagRows, registries: Registries) -> None:
        self._cache = cache
        self._rows = rows
        self._registries = registries
        self._turn = asyncio.Lock()

    async def image(self, name: ImageName) -> Purged:
        """A tag, a manifest, or a whole repository; raises NothingCached or NoSuchRegistry."""
        site = site_of(self._registries, name)
        async with self._turn:
            going = await self._going(site, name)
            if not going.tags and not going.parts:
                raise NothingCached(
                    f"nothing of {name} is cached",
                    next_step=f"tidegate cache list {name.registry}/{name.repository}",
                )
            done = await self._give_up(going)
            if name.reference is None:
                for digest in await self._cache.store.run(self._rows.held_by, *going.place):
                    await self._cache.index.members.forget([digest], going.place)
                await self._cache.index.listings.forget(*going.place)
            return done

    async def blob(self, digest: Digest) -> Purged:
        """Exactly this content, whatever references it; raises NothingCached."""
        async with self._turn:
            if not self._cache.store.holds(digest):
                raise NothingCached(f"{digest} is not cached", next_step="tidegate cache list")
            tags = await self._cache.store.run(self._rows.tags_of, digest)
            in_use = int(self._cache.store.is_read(digest))
            size = await self._remove(digest)
            for row in tags:
                await self._cache.index.drop_tag(row.registry, row.repository, row.tag)
            return _purged(tags, removed=1, freed=size, in_use=in_use)

    async def everything(self) -> Purged:
        """All tags and all blobs."""
        async with self._turn:
            dropped: list[TagRow] = []
            key = ("", "", "", "")
            while rows := await self._cache.store.run(self._tags_after, key):
                key = rows[-1].key
                for row in rows:
                    await self._cache.index.drop_tag(row.registry, row.repository, row.tag)
                dropped += rows
            removed = freed = in_use = 0
            after: Digest | None = None
            while entries := await self._cache.index.catalogue.entries(after=after, limit=_AT_ONCE):
                after = entries[-1].digest
                for entry in entries:
                    in_use += int(self._cache.store.is_read(entry.digest))
                    freed += await self._remove(entry.digest)
                    removed += 1
            await self._cache.index.listings.forget()
            return _purged(dropped, removed=removed, freed=freed, in_use=in_use)

    async def _going(self, site: Site, name: ImageName) -> _Going:
        going = _Going({}, {}, (site.namespace, name.repository.name))
        if isinstance(name.reference, Tag):
            key = (site.registry, name.repository.name, name.reference.name)
            variants = await self._cache.index.tag_variants(*key)
            if variants:
                going.tags[key] = None
            for variant in variants:
                await self._add(going, variant.digest)
        elif isinstance(name.reference, Digest):
            if going.place in await self._cache.store.run(self._rows.places, name.reference):
                await self._add(going, name.reference)
                for row in await self._cache.store.run(self._rows.tags_of, name.reference):
                    if (row.registry, row.repository) == (site.registry, name.repository.name):
                        going.tags[row.registry, row.repository, row.tag] = None
        else:
            for row in await self._cache.store.run(self._tags_within, site.registry, name.repository.name):
                going.tags[row.registry, row.repository, row.tag] = None
                await self._add(going, row.digest)
            for digest in await self._cache.store.run(
                self._rows.held_by, site.namespace, name.repository.name
            ):
                await self._add(going, digest)
        return going

    async def _add(self, going: _Going, digest: Digest) -> None:
        store = self._cache.store
        if going.parts.get(digest) is not None:
            return
        tree = await image_tree(store, digest)
        if tree is None:
            if await store.run(store.holds, digest):
                going.parts.setdefault(digest, None)
            return
        for part in tree.walk():
            if part.present and going.parts.get(part.digest) is None:
                going.parts[part.digest] = part

    async def _give_up(self, going: _Going) -> Purged:
        for key in going.tags:
            await self._cache.index.drop_tag(*key)
        needed = await self._needed(going)
        removed = freed = kept_bytes = in_use = 0
        for digest in going.parts:
            if digest in needed.anywhere:
                kept_bytes += await self._size(digest)
                if digest not in needed.here:
                    await self._cache.index.members.forget([digest], going.place)
                continue
            in_use += int(self._cache.store.is_read(digest))
            freed += await self._remove(digest)
            removed += 1
        return Purged(
            tags=[_written(key) for key in going.tags],
            removed_blobs=removed,
            freed_bytes=freed,
            kept_blobs=len(needed.anywhere),
            kept_bytes=kept_bytes,
            in_use=in_use,
        )

    async def _needed(self, going: _Going) -> _Needed:
        """What of it something that stays references."""
        needed = _Needed(set(), set())
        manifests = [digest for digest, part in going.parts.items() if part is not None and part.is_manifest]
        await self._cache.store.run(self._look_for_names, manifests, going, needed)
        after: str | None = ""
        while after is not None:
            after = await self._cache.store.run(self._look_for_needs, after, going, needed)
        for digests in (needed.anywhere, needed.here):
            for digest in list(digests):
                digests.update(_within(going.parts[digest], going.parts))
        return needed

    def _look_for_names(self, manifests: Sequence[Digest], going: _Going, needed: _Needed) -> None:
        """Which of these manifests a tag that stays, or another repository, has."""
        for digest in manifests:
            rows = self._rows.tags_of(digest)
            tags = [row for row in rows if (row.registry, row.repository, row.tag) not in going.tags]
            if tags or any(place != going.place for place in self._rows.places(digest)):
                needed.anywhere.add(digest)
            if any(row.repository == going.place[1] for row in tags):
                needed.here.add(digest)

    def _look_for_needs(self, after: str, going: _Going, needed: _Needed) -> str | None:
        """Read the next manifests that stay; where to go on, None at the end."""
        manifests = self._rows.manifests(after=after, limit=_AT_ONCE)
        for digest in manifests:
            if digest in going.parts:
                continue
            named = [each for each in named_by(self._cache.store, digest) if each in going.parts]
            needed.anywhere.update(named)
            if named and going.place in self._rows.places(digest):
                needed.here.update(named)
        return str(manifests[-1]) if manifests else None

    def _tags_after(self, key: tuple[str, str, str, str]) -> list[TagRow]:
        return self._rows.tags(after=key, limit=_AT_ONCE)

    def _tags_within(self, registry: str, repository: str) -> list[TagRow]:
        return self._rows.tags(registry=registry, repository=repository, limit=1_000_000)

    async def _remove(self, digest: Digest) -> int:
        try:
            size_bytes = await self._cache.purge(digest)
        except OSError as error:
            raise TidegateError(
                f"{digest} cannot be removed: {error.strerror or error}", next_step="tidegate status"
            ) from error
        await self._cache.index.members.forget([digest])
        return size_bytes

    async def _size(self, digest: Digest) -> int:
        blob = self._cache.store.blob(digest)
        if blob is None:
            return 0
        with blob:
            return blob.size_bytes


def _within(tree: Part | None, parts: dict[Digest, Part | None]) -> Iterable[Digest]:
    return () if tree is None else (part.digest for part in tree.walk() if part.digest in parts)


def _written(key: tuple[str, str, str]) -> str:
    registry, repository, tag = key
    return f"{registry}/{repository}:{tag}"


def _purged(tags: Sequence[TagRow], *, removed: int, freed: int, in_use: int) -> Purged:
    named = dict.fromkeys(f"{row.registry}/{row.repository}:{row.tag}" for row in tags)
    return Purged(
        tags=list(named), removed_blobs=removed, freed_bytes=freed, kept_blobs=0, kept_bytes=0, in_use=in_use
    )
