"""What the index knows of images, for people: tags and manifests page by page, and who else has a digest.

By a connection of its own, which reads beside those of the index: no look-up of a pull waits for a question
of an operator's, however many rows it reads. An index that is in memory alone, because its file cannot be
used, has nothing to show here. This module changes nothing.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.storage.index_file import Row

UNTAGGED = "@"
"""In place of a tag: a manifest that is known by its digest alone."""

_TAGS = """
SELECT t.registry, t.repository, t.tag, t.digest, t.media_type, t.checked_at, b.size_bytes, b.last_use
  FROM tags t LEFT JOIN blobs b ON b.digest = t.digest
 WHERE (t.registry, t.repository, t.tag, t.media_type) > (?, ?, ?, ?)
   AND (? = '' OR t.registry = ?) AND (? = '' OR t.repository = ?)
 ORDER BY t.registry, t.repository, t.tag, t.media_type LIMIT ?
"""
# CROSS keeps SQLite to that order of the tables: the other one sorts all manifests for each page.
_UNTAGGED = """
SELECT m.registry, m.repository, ?, m.digest, coalesce(d.media_type, ''), NULL, b.size_bytes, b.last_use
  FROM members m CROSS JOIN blobs b ON b.digest = m.digest AND b.manifest = 1
  LEFT JOIN descriptors d ON d.digest = m.digest
 WHERE (m.digest, m.registry, m.repository) > (?, ?, ?)
   AND (? = '' OR m.registry = ?) AND (? = '' OR m.repository = ?)
   AND (m.digest, m.repository) NOT IN (SELECT digest, repository FROM tags)
 ORDER BY m.digest, m.registry, m.repository LIMIT ?
"""
_BY_REGISTRY = """
SELECT registry, count(*), sum(size_bytes), sum(manifest)
  FROM (SELECT DISTINCT m.registry AS registry, m.digest AS digest, b.size_bytes, b.manifest
          FROM members m JOIN blobs b ON b.digest = m.digest)
 GROUP BY registry ORDER BY 3 DESC LIMIT ?
"""
_MOST_REGISTRIES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRow:
    """A tag, or with `tag` UNTAGGED a manifest without one; `size_bytes` and `last_use` if it is stored.

    `registry` is the name in the configuration for a tag, and a mirror's name for one without.
    """

    registry: str
    repository: str
    tag: str
    digest: Digest
    media_type: str = ""
    checked_at: datetime | None = None
    size_bytes: int | None = None
    last_use: datetime | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.registry, self.repository, self.tag, self.media_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryShare:
    """How much of the store is known to be held by one registry; what several hold counts for each."""

    registry: str
    blobs: int
    size_bytes: int
    manifests: int


class TagRows:
    """Questions to the file of the index; every method blocks, and may be called in any thread."""

    def __init__(self, path: Path) -> None:
        self._uri = f"file:{quote(str(path))}?mode=ro"

    def tags(
        self,
        *,
        after: tuple[str, str, str, str] = ("", "", "", ""),
        registry: str = "",
        repository: str = "",
        limit: int,
    ) -> list[TagRow]:
        """Tags in order, from behind the key `after`."""
        parameters = (*after, registry, registry, repository, repository, limit)
        return [row for row in map(_tag_row, self._select(_TAGS, parameters)) if row is not None]

    def untagged(
        self,
        *,
        after: tuple[str, str, str] = ("", "", ""),
        registry: str = "",
        repository: str = "",
        limit: int,
    ) -> list[TagRow]:
        """Stored manifests that no tag there names, from behind (digest, registry, repository)."""
        parameters = (UNTAGGED, *after, registry, registry, repository, repository, limit)
        return [row for row in map(_tag_row, self._select(_UNTAGGED, parameters)) if row is not None]

    def tags_of(self, digest: Digest) -> list[TagRow]:
        """The tags that name that manifest."""
        sql = (
            "SELECT registry, repository, tag, digest, media_type, checked_at, NULL, NULL"
            " FROM tags WHERE digest = ?"
        )
        return [row for row in map(_tag_row, self._select(sql, (str(digest),))) if row is not None]

    def places(self, digest: Digest) -> list[tuple[str, str]]:
        """The (registry as a mirror's name, repository) that are known to hold it."""
        rows = self._select("SELECT registry, repository FROM members WHERE digest = ?", (str(digest),))
        return [(str(registry), str(repository)) for registry, repository in rows]

    def held_by(self, registry: str, repository: str) -> list[Digest]:
        """What that repository is known to hold."""
        sql = "SELECT digest FROM members WHERE registry = ? AND repository = ?"
        return list(_digests(self._select(sql, (registry, repository))))

    def manifests(self, *, after: str, limit: int) -> list[Digest]:
        """The stored manifests, in the order of their digests."""
        sql = "SELECT digest FROM blobs WHERE digest > ? AND manifest = 1 ORDER BY digest LIMIT ?"
        return list(_digests(self._select(sql, (after, limit))))

    def count_tags(self) -> int:
        """How many tags are known."""
        sql = "SELECT count(*) FROM (SELECT DISTINCT registry, repository, tag FROM tags)"
        match self._select(sql, ()):
            case [(int(number),)]:
                return number
            case _:
                return 0

    def by_registry(self) -> list[RegistryShare]:
        """The largest ones first."""
        shares = []
        for row in self._select(_BY_REGISTRY, (_MOST_REGISTRIES,)):
            match row:
                case (str(registry), int(blobs), int(size_bytes), int(manifests)):
                    shares.append(
                        RegistryShare(
                            registry=registry, blobs=blobs, size_bytes=size_bytes, manifests=manifests
                        )
                    )
        return shares

    def _select(self, sql: str, parameters: Row) -> Sequence[tuple[object, ...]]:
        try:
            connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=1.0)
        except sqlite3.Error:
            return []
        try:
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError:
            return []
        finally:
            connection.close()


def _digests(rows: Iterable[tuple[object, ...]]) -> Iterable[Digest]:
    for (text,) in rows:
        try:
            yield Digest.parse(str(text))
        except InvalidDigest:
            continue


def _tag_row(row: tuple[object, ...]) -> TagRow | None:
    registry, repository, tag, digest, media_type, checked_at, size_bytes, last_use = row
    try:
        return TagRow(
            registry=str(registry),
            repository=str(repository),
            tag=str(tag),
            digest=Digest.parse(str(digest)),
            media_type=str(media_type),
            checked_at=_time(checked_at),
            size_bytes=size_bytes if isinstance(size_bytes, int) else None,
            last_use=_time(last_use),
        )
    except InvalidDigest:
        return None


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
    except (OverflowError, ValueError, OSError):
        return None
