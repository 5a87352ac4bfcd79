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
        # By place and digest, not by digest: or an answer about what somebody used elsewhere a moment ago
        # would come faster than one about what nobody has (I6).
        self._held: Remembered[tuple[str, str, str], bool] = Remembered(remembered)

    def remembered(self, registry: str, repository: str, digest: Digest) -> bool:
        """As `holds`, from memory alone: False also when the file would have to be asked."""
        return self._held.get((registry, repository, digest.encoded)) is True

    async def holds(self, registry: str, repository: str, digest: Digest) -> bool:
        """Whether the repository is known to hold that content."""
        key = (registry, repository, digest.encoded)
        known = self._held.get(key)
        if known is not MISSING:
            return known
        writes_before = self._held.writes
        sql = "SELECT 1 FROM members WHERE digest = ? AND registry = ? AND repository = ?"
        held = bool(await self._in_thread(self._file.select, sql, (str(digest), registry, repository)))
        self._held.learn(key, held, writes_before=writes_before)
        return held

    async def learn(self, registry: str, repository: str, digests: Iterable[Digest]) -> None:
        """The repository holds these."""
        rows: list[Row] = []
        for digest in digests:
            key = (registry, repository, digest.encoded)
            if self._held.get(key) is not True:
                self._held.put(key, True)
                rows.append((str(digest), registry, repository))
        if rows:
            await self._in_thread(self._insert, rows)

    async def forget(self, digest: Digest, place: Place | None = None) -> None:
        """The content is gone; with `place`, from there alone."""
        places = await self._in_thread(self._places, digest) if place is None else [place]
        for registry, repository in places:
            self._held.put((registry, repository, digest.encoded), False)
        rows: list[Row] = [(str(digest), registry, repository) for registry, repository in places]
        sql = "DELETE FROM members WHERE digest = ? AND registry = ? AND repository = ?"
        await self._in_thread(self._file.write, sql, rows)

    def _places(self, digest: Digest) -> list[Place]:
        sql = "SELECT registry, repository FROM members WHERE digest = ?"
        rows = self._file.select(sql, (str(digest),))
        return [(str(registry), str(repository)) for registry, repository in rows]

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
