"""Which repository is known to hold which content: the rows by which stored bytes may be served under a name.

Rows only say what a registry said; losing one costs a question, so there is a limit to them and those that
are thinned out are any: digests are evenly spread. They go with the content (`forget`). One thread of the
index runs the SQL. This module does not know who may read, and learns nothing by itself.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.remembered import MISSING, Remembered

V = TypeVar("V")
Place = tuple[str, str]
"""A registry, by the name that a mirror would be told, and a repository there."""

LIMIT_ROWS = 500_000
_SLICES = 256  # of the digests, by their first two digits
_THINNED_TO = 0.95
_COUNTED_EVERY = 4096  # rows written: counting a million takes a third of a second


class InThread(Protocol):
    """Calls what blocks in the thread of the index."""

    async def __call__(self, function: Callable[..., V], *arguments: object) -> V: ...


Select = Callable[[str, Row], Awaitable[Sequence[Row]]]
"""Rows of the index, as every write that was begun before left them."""


class Members:
    """The rows, and those of them used last in memory. Used on the event loop."""

    def __init__(
        self,
        file: IndexFile,
        in_thread: InThread,
        select: Select,
        *,
        remembered: int,
        limit_rows: int = LIMIT_ROWS,
    ) -> None:
        self._select = select
        self._file = file
        self._in_thread = in_thread
        self._limit_rows = limit_rows
        self._uncounted = 0
        self.forgotten = 0
        """How many rows were given up because the content was."""
        # By place and digest, not by digest: or an answer about what somebody used elsewhere a moment ago
        # would come faster than one about what nobody has (I6).
        self._held: Remembered[tuple[str, str, str], bool] = Remembered(remembered)

    def remembered(self, registry: str, repository: str, digest: Digest) -> bool:
        """As `holds`, from memory alone: False also when the file would have to be asked."""
        return self._held.peek((registry, repository, digest.encoded)) is True

    async def holds(self, registry: str, repository: str, digest: Digest) -> bool:
        """Whether the repository is known to hold that content."""
        key = (registry, repository, digest.encoded)
        known = self._held.get(key)
        if known is not MISSING:
            return known
        writes_before = self._held.writes
        sql = "SELECT 1 FROM members WHERE digest = ? AND registry = ? AND repository = ?"
        held = bool(await self._select(sql, (str(digest), registry, repository)))
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

    async def forget(self, digests: Sequence[Digest], place: Place | None = None) -> None:
        """The content is gone; with `place`, from there alone."""
        if place is None:
            gone = await self._in_thread(self._places, digests)
        else:
            gone = [(digest, place) for digest in digests]
        self.forgotten += len(gone)
        for digest, (registry, repository) in gone:
            self._held.put((registry, repository, digest.encoded), False)
        rows: list[Row] = [(str(digest), registry, repository) for digest, (registry, repository) in gone]
        if rows:
            sql = "DELETE FROM members WHERE digest = ? AND registry = ? AND repository = ?"
            await self._in_thread(self._file.write, sql, rows)

    def _places(self, digests: Sequence[Digest]) -> list[tuple[Digest, Place]]:
        sql = "SELECT registry, repository FROM members WHERE digest = ?"
        return [
            (digest, (str(registry), str(repository)))
            for digest in digests
            for registry, repository in self._file.select(sql, (str(digest),))
        ]

    def _insert(self, rows: Sequence[Row]) -> None:
        self._file.write(
            "INSERT OR IGNORE INTO members (digest, registry, repository) VALUES (?, ?, ?)", rows
        )
        self._uncounted += len(rows)
        if self._uncounted >= min(_COUNTED_EVERY, self._limit_rows):
            self._uncounted = 0
            self._thin()

    def _thin(self) -> None:
        """Take slices out until there is room again, if there are too many rows."""
        rows = _number(self._file.select("SELECT count(*) FROM members", ()))
        if rows <= self._limit_rows:
            return
        for first in random.sample(range(_SLICES), _SLICES):
            if rows <= self._limit_rows * _THINNED_TO:
                break
            rows -= self._rows_of(first)
            for bounds in _slice(first):
                self._file.write("DELETE FROM members WHERE digest >= ? AND digest < ?", (bounds,))

    def _rows_of(self, first: int) -> int:
        sql = "SELECT count(*) FROM members WHERE digest >= ? AND digest < ?"
        return sum(_number(self._file.select(sql, bounds)) for bounds in _slice(first))


def _number(rows: Sequence[Row]) -> int:
    """The only value of the only row; 0 when the file failed."""
    match rows:
        case [(int(number),)]:
            return number
        case _:
            return 0


def _slice(first: int) -> list[tuple[str, str]]:
    """The digests whose first two digits are that number."""
    return [(f"{name}:{first:02x}", f"{name}:{first:02x}g") for name in ("sha256", "sha512")]
