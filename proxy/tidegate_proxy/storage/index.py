"""What is known about stored content beside its bytes: media types, tags, who may read what.

Which content there is, and when it was used, is the catalogue's to say, in the same file.

One process owns the file. SQL runs in two threads, one that writes and one that reads beside it; answers
are remembered, so that a hit's look-up is a dict access and no thread hop. Writes are remembered at once
and written in order.

Failure policy: the index is a memory aid, and every row of it can be learned again from a registry.
A file that is damaged, unreadable or of an unknown version is moved aside and a new one begun; where
none can be written, an index in memory serves until one can. No call here raises for the disk.

This module does not know which blobs exist, and does not decide what is stale, fresh or public.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

from tidegate_proxy.oci.descriptor import Descriptor
from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.storage.catalogue import Catalogue
from tidegate_proxy.storage.index_file import RETURNS_EVERY_S, IndexFile, Row
from tidegate_proxy.storage.index_reader import IndexReader
from tidegate_proxy.storage.listings import Listings
from tidegate_proxy.storage.members import Members
from tidegate_proxy.storage.remembered import MISSING, Remembered

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# By whether it is in the name of a login.
_READABLE = {
    False: "public WHERE registry = ? AND repository = ?",
    True: "shared WHERE registry = ? AND repository = ? AND login = ?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TagVariant:
    """What a tag named, in one media type, when its registry last said so; `checked_at` is aware."""

    media_type: str
    digest: Digest
    checked_at: datetime


class Index:
    """The index over one file; its methods are called on the event loop."""

    def __init__(self, file: IndexFile, reader: IndexReader, *, remembered: int) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index")
        self._reader = reader
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index-read")
        # Calls in the writer's thread: the first is counted on the loop, the second in that thread.
        self._begun = self._ended = 0
        self._descriptors: Remembered[Digest, Descriptor | None] = Remembered(remembered)
        self._tags: Remembered[tuple[str, str, str], tuple[TagVariant, ...]] = Remembered(remembered)
        self._public: Remembered[tuple[str, str, str], datetime | None] = Remembered(remembered)
        self._any_public: Remembered[tuple[str, str], bool] = Remembered(remembered)
        self.members = Members(file, self._in_thread, self._select, remembered=remembered)
        """Which repository holds what."""
        self.listings = Listings(file, self._in_thread, self._select)
        """What was answered to questions for lists."""
        self.catalogue = Catalogue(file, self._thread)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        say: Callable[[str], None] | None = None,
        remembered: int = 65_536,
        returns_every_s: float = RETURNS_EVERY_S,
    ) -> Self:
        """Open or begin the file; `say` is told, in a sentence, what had to be given up, from any thread.

        Keeps at most `remembered` rows of each kind in memory; looks that often for a way back from an index
        in memory. Blocks briefly, however large the file is.
        """
        file = IndexFile(path, say or (lambda _: None), returns_every_s=returns_every_s)
        return cls(file, IndexReader(path, file), remembered=remembered)

    async def descriptor(self, digest: Digest) -> Descriptor | None:
        """What the content of that digest is, if it was ever described."""
        return await self._known(
            self._descriptors,
            digest,
            "SELECT media_type, size_bytes FROM descriptors WHERE digest = ?",
            (str(digest),),
            lambda rows: _descriptor(digest, rows),
        )

    async def put_descriptor(self, descriptor: Descriptor) -> None:
        """Remember what some content is."""
        self._descriptors.put(descriptor.digest, descriptor)
        await self._write(
            "INSERT OR REPLACE INTO descriptors (digest, media_type, size_bytes) VALUES (?, ?, ?)",
            (str(descriptor.digest), descriptor.media_type, descriptor.size_bytes),
        )

    async def tag_variants(self, registry: str, repository: str, tag: str) -> tuple[TagVariant, ...]:
        """What the tag named, one variant per media type."""
        key = (registry, repository, tag)
        return await self._known(
            self._tags,
            key,
            "SELECT media_type, digest, checked_at FROM tags"
            " WHERE registry = ? AND repository = ? AND tag = ?",
            key,
            _variants,
        )

    async def put_tag(self, registry: str, repository: str, tag: str, variant: TagVariant) -> None:
        """Remember what the tag names in that media type; its other variants stay."""
        key = (registry, repository, tag)
        await self.tag_variants(*key)
        known = self._tags.get(key)  # as it is now: another variant may have been put meanwhile
        if known is MISSING:
            self._tags.forget(key)
        else:
            others = tuple(each for each in known if each.media_type != variant.media_type)
            self._tags.put(key, (*others, variant))
        await self._write(
            "INSERT OR REPLACE INTO tags (registry, repository, tag, media_type, digest, checked_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*key, variant.media_type, str(variant.digest), variant.checked_at.timestamp()),
        )

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forget all variants of the tag."""
        key = (registry, repository, tag)
        self._tags.put(key, ())
        await self._write("DELETE FROM tags WHERE registry = ? AND repository = ? AND tag = ?", key)

    async def public_checked_at(self, registry: str, repository: str, login: str = "") -> datetime | None:
        """When the repository last answered an anonymous request; None if it is not known to be public.

        Here and below: with `login`, the same of requests in the name of that login.
        """
        return await self._known(
            self._public,
            (registry, repository, login),
            f"SELECT checked_at FROM {_READABLE[bool(login)]}",
            _readable_row(registry, repository, login),
            lambda rows: _time(rows[0][0]) if rows else None,
        )

    def remembered_public(self, registry: str, repository: str, login: str = "") -> datetime | None:
        """As `public_checked_at`, from memory alone: None also when the file would have to be asked."""
        return self._public.peek((registry, repository, login))

    async def any_public(self, registry: str, login: str = "") -> bool:
        """Whether any repository of the registry is known to be public."""
        sql = "SELECT 1 FROM public WHERE registry = ? LIMIT 1"
        if login:
            sql = "SELECT 1 FROM shared WHERE registry = ? AND login = ? LIMIT 1"
        row = (registry, login) if login else (registry,)
        return await self._known(self._any_public, (registry, login), sql, row, bool)

    async def mark_public(self, registry: str, repository: str, when: datetime, login: str = "") -> None:
        """The repository answered an anonymous request."""
        self._public.put((registry, repository, login), when)
        self._any_public.put((registry, login), True)
        row: Row = (*_readable_row(registry, repository, login), when.timestamp())
        await self._write(
            "INSERT OR REPLACE INTO shared (registry, repository, login, checked_at) VALUES (?, ?, ?, ?)"
            if login
            else "INSERT OR REPLACE INTO public (registry, repository, checked_at) VALUES (?, ?, ?)",
            row,
        )

    async def mark_private(self, registry: str, repository: str, login: str = "") -> None:
        """The repository refused an anonymous request."""
        self._public.put((registry, repository, login), None)
        self._any_public.forget((registry, login))
        await self._write(f"DELETE FROM {_READABLE[bool(login)]}", _readable_row(registry, repository, login))

    async def put_manifest(self, descriptor: Descriptor) -> None:
        """As `put_descriptor`, of content that is a manifest: the catalogue keeps it longer."""
        await self.put_descriptor(descriptor)
        self.catalogue.is_manifest(descriptor.digest)

    async def forget_missing(self, digests: Sequence[Digest], holds: Callable[[Digest], bool]) -> None:
        """Forget what is known of contents that `holds` denies; see the catalogue."""
        missing = await self.catalogue.forget_missing(digests, holds)
        for digest in missing:
            self._descriptors.forget(digest)
        await self.members.forget(missing)

    def touch(self, digest: Digest, when: datetime) -> None:
        """The content was used."""
        self.catalogue.touch(digest, when)

    async def close(self) -> None:
        """Write what is waiting, then close the file."""
        self.catalogue.write_uses()
        # The reader first: only the last connection checks the log in, and one that reads cannot.
        await asyncio.wrap_future(self._reading.submit(self._reader.close))
        self._reading.shutdown(wait=False)
        await self._in_thread(self._file.close)
        self._thread.shutdown(wait=False)

    async def _known(
        self,
        memory: Remembered[K, V],
        key: K,
        sql: str,
        parameters: Row,
        value_of: Callable[[Sequence[Row]], V],
    ) -> V:
        """What memory has, without a thread hop, or else what the file has."""
        known = memory.get(key)
        if known is not MISSING:
            return known
        writes_before = memory.writes
        value = value_of(await self._select(sql, parameters))
        memory.learn(key, value, writes_before=writes_before)
        return value

    async def _write(self, sql: str, row: Row) -> None:
        await self._in_thread(self._file.write, sql, (row,))

    async def _select(self, sql: str, row: Row) -> Sequence[Row]:
        """Beside the writer, unless one of our own writes is under way, which has to be seen."""
        if self._begun == self._ended:
            rows = await self._read_beside(sql, row)
            if rows is not None:
                return rows
        return await self._in_thread(self._file.select, sql, row)

    async def _read_beside(self, sql: str, row: Row) -> Sequence[Row] | None:
        # By a future of the loop's own: one of each kind would cost a third of the look-up.
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Row] | None] = loop.create_future()

        def settle(rows: Sequence[Row] | None) -> None:
            if not answer.done():
                answer.set_result(rows)

        def read() -> None:
            rows = None
            try:
                rows = self._reader.select(sql, row)
            finally:  # a bug, too, is the writer's to raise
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(settle, rows)

        self._reading.submit(read)
        return await answer

    async def _in_thread(self, function: Callable[..., V], *arguments: object) -> V:
        def counted() -> V:
            try:
                return function(*arguments)
            finally:
                self._ended += 1

        self._begun += 1
        # Shielded: a caller that is cancelled must not take a write with it that memory already shows.
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(counted)))


def _descriptor(digest: Digest, rows: Sequence[Row]) -> Descriptor | None:
    match rows:
        case [(str(media_type), int(size_bytes))]:
            return Descriptor(media_type=media_type, digest=digest, size_bytes=size_bytes)
        case _:
            return None


def _readable_row(registry: str, repository: str, login: str) -> tuple[str, ...]:
    return (registry, repository, login) if login else (registry, repository)


def _variants(rows: Sequence[Row]) -> tuple[TagVariant, ...]:
    variants = []
    for row in rows:
        match row:
            case (str(media_type), str(text), checked_at) if (time := _time(checked_at)) is not None:
                try:
                    digest = Digest.parse(text)
                except InvalidDigest:
                    continue  # a bit that flipped, or a later version's algorithm
                variants.append(TagVariant(media_type=media_type, digest=digest, checked_at=time))
            case _:
                continue
    return tuple(variants)


def _time(timestamp: str | float | bytes | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp, UTC) if isinstance(timestamp, int | float) else None
    except (OverflowError, ValueError, OSError):
        return None
