"""Which repository is known to hold which content: the rows by which stored bytes may be served under a name.

Rows only say what a registry said; losing one costs a question, so there is a limit to them and those that
are thinned out are any: digests are evenly spread. They go with the content (`forget`). One thread of the
index runs the SQL. This module does not know who may read, and learns nothing by itself.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.remembered import MISSING, Remembered

V = TypeVar("V")
Place = tuple[str, str]
"""A registry, by the name that a mirror would be told, and a repository there."""

LIMIT_ROWS = 1_000_000
_PLACES_AT_MOST = 1024  # of one digest: a base layer is in many repositories
_SLICES = 256  # of the digests, by their first two digits
_LOOKED_AT_EVERY = 4096  # rows written


class InThread(Protocol):
    """Calls what blocks in the thread of the index."""

    async def __call__(self, function: Callable[..., V], *arguments: object) -> V: ...


class Members:
    """The rows, and those of them used last in memory. Used on the event loop."""

    def __init__(
        self, file: IndexFile, in_thread: InThread, *, remembered: int, limit_rows: int = LIMIT_ROWS
    ) -> None:
        self._file = file
        self._in_thread = in_thread
        self._limit_rows = limit_rows
        self._written_rows = 0
        # By `encoded` alone, whose hash is computed once; no two algorithms have digests of one length.
        self._places: Remembered[str, frozenset[Place]] = Remembered(remembered)

    def remembered(self, registry: str, repository: str, digest: Digest) -> bool:
        """As `holds`, from memory alone: False also when the file would have to be asked."""
        places = self._places.get(digest.encoded)
        return places is not MISSING and (registry, repository) in places

    async def holds(self, registry: str, repository: str, digest: Digest) -> bool:
        """Whether the repository is known to hold that content."""
        places = self._places.get(digest.encoded)
        if places is MISSING:
            writes_before = self._places.writes
            sql = f"SELECT registry, repository FROM members WHERE digest = ? LIMIT {_PLACES_AT_MOST}"
            places = _places(await self._in_thread(self._file.select, sql, (str(digest),)))
            self._places.learn(digest.encoded, places, writes_before=writes_before)
        return (registry, repository) in places

    async def learn(self, registry: str, repository: str, digests: Iterable[Digest]) -> None:
        """The repository holds these."""
        place = (registry, repository)
        rows: list[Row] = []
        for digest in digests:
            places = self._places.get(digest.encoded)
            if places is MISSING or len(places) >= _PLACES_AT_MOST:
                self._places.forget(digest.encoded)  # what is being read of it now is older
            elif place in places:
                continue
            else:
                self._places.put(digest.encoded, places | {place})
            rows.append((str(digest), registry, repository))
        if rows:
            await self._in_thread(self._insert, rows)

    async def forget(self, digest: Digest, place: Place | None = None) -> None:
        """The content is gone; with `place`, from there alone."""
        self._places.forget(digest.encoded)
        where = " AND registry = ? AND repository = ?" if place is not None else ""
        row: Row = (str(digest), *(place or ()))
        await self._in_thread(self._file.write, f"DELETE FROM members WHERE digest = ?{where}", (row,))

    def _insert(self, rows: Sequence[Row]) -> None:
        self._file.write(
            "INSERT OR IGNORE INTO members (digest, registry, repository) VALUES (?, ?, ?)", rows
        )
        self._written_rows += len(rows)
        if self._written_rows >= min(_LOOKED_AT_EVERY, self._limit_rows):
            self._written_rows = 0
            self._thin()

    def _thin(self) -> None:
        for _ in range(_SLICES):
            first = secrets.randbelow(_SLICES)
            if _SLICES * self._rows_of(first) <= self._limit_rows:
                break
            for low, high in _slice(first):
                self._file.write("DELETE FROM members WHERE digest >= ? AND digest < ?", ((low, high),))

    def _rows_of(self, first: int) -> int:
        """How many rows a slice has: counting them all would keep others waiting."""
        sql = "SELECT count(*) FROM members WHERE digest >= ? AND digest < ?"
        counted = [row[0] for bounds in _slice(first) for row in self._file.select(sql, bounds)]
        return sum(count for count in counted if isinstance(count, int))


def _slice(first: int) -> list[tuple[str, str]]:
    """The digests whose first two digits are that number."""
    return [(f"{name}:{first:02x}", f"{name}:{first:02x}g") for name in ("sha256", "sha512")]


def _places(rows: Sequence[Row]) -> frozenset[Place]:
    return frozenset((str(registry), str(repository)) for registry, repository in rows)
