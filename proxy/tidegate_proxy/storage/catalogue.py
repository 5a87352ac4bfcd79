"""Which blobs the store holds, how large each is and when it was last used: rows of the index.

Rows follow files: a blob gets its row after its name, and loses it only when no file has the name any more,
so whoever wins a race of a fetch and an eviction, the row tells what is there. What the index forgot (a lost
file, a write on a full disk) a survey finds again.

Last use is a logical clock: it follows the wall clock and never goes back, so that a stepped clock changes no
order. All SQL runs in the index's thread. This module reads no directory and does not decide what goes.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.usage import Usage

T = TypeVar("T")

TOUCHES_AT_ONCE = 1024
_TOUCHES_EVERY_S = 5.0
_USES_IN_TURN = 32
# A manifest frees next to nothing, and without it the layers of its image are of no use.
MANIFEST_GRACE_S = 7 * 24 * 3600.0

_COLUMNS = "digest, size_bytes, last_use, manifest"
_PUT = (
    "INSERT INTO blobs (digest, size_bytes, last_use, manifest)"
    " VALUES (?1, ?2, ?3, EXISTS (SELECT 1 FROM descriptors WHERE digest = ?1)) "
)
_OF_KIND = f"SELECT {_COLUMNS}, last_use + ? AS rank FROM blobs WHERE manifest = ? ORDER BY last_use LIMIT ?"
_OLDEST = (
    f"SELECT {_COLUMNS} FROM (SELECT * FROM ({_OF_KIND}) UNION ALL SELECT * FROM ({_OF_KIND}))"
    " ORDER BY rank LIMIT ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One blob of the store; `last_use` is aware."""

    digest: Digest
    size_bytes: int
    last_use: datetime
    manifest: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file of the store; `last_use` in seconds since the epoch, as far as the file knows."""

    digest: Digest
    size_bytes: int
    last_use: float


class Catalogue:
    """The rows, and the figures that follow from them."""

    def __init__(
        self, file: IndexFile, thread: ThreadPoolExecutor, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Reads two rows: blocks briefly."""
        self.usage = Usage()
        self._file = file
        self._thread = thread
        self._clock = clock
        self._touched: dict[Digest, float] = {}
        self._unwritten: deque[Row] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._surveyed: tuple[int, int] | None = None
        self._latest = _number(file.select("SELECT max(last_use) FROM blobs WHERE manifest = 0", ()))
        self._latest = max(
            self._latest, _number(file.select("SELECT max(last_use) FROM blobs WHERE manifest = 1", ()))
        )
        self._count()

    # What happens to blobs.

    def stored(self, digest: Digest, size_bytes: int) -> None:
        """A blob got its name. Returns at once; called from any thread, never raises."""
        row: Row = (str(digest), size_bytes, self._stamp(self._clock()))
        sql = f"{_PUT} ON CONFLICT (digest) DO UPDATE SET last_use = excluded.last_use"
        with suppress(RuntimeError):  # closed already: the next survey finds it
            self._thread.submit(self._write, sql, [row])

    def touch(self, digest: Digest, when: datetime) -> None:
        """The content was used: a dict entry now, and one transaction for many of them a little later."""
        self._touched[digest] = self._stamp(when.timestamp())
        if len(self._touched) >= TOUCHES_AT_ONCE:
            self._write_uses_by_and_by()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TOUCHES_EVERY_S, self._write_uses_by_and_by)

    def write_uses(self) -> None:
        """Have all that was used written before anything else; on the loop."""
        self._gather_uses()
        self._thread.submit(self._write_some_uses, len(self._unwritten))

    def is_manifest(self, digest: Digest) -> None:
        """The blob is a manifest, which is kept longer than its last use says. Returns at once."""
        self._thread.submit(
            self._file.write, "UPDATE blobs SET manifest = 1 WHERE digest = ?", [(str(digest),)]
        )

    async def forget_missing(
        self, digests: Sequence[Digest], holds: Callable[[Digest], bool]
    ) -> list[Digest]:
        """Drop the rows of those that `holds` denies, which is asked in the index's thread; returns them.

        Asked there, because a row that is put for a blob stored after the question comes after its answer.
        """
        return await self._run(self._forget_missing, digests, holds)

    # What a survey tells.

    @property
    def wants_survey(self) -> bool:
        """Whether files may be there without rows: at the start, after a lost write or file."""
        return self._surveyed != self._state()

    async def survey_begins(self) -> Callable[[], None]:
        """Call what this returns at the end of the survey."""
        state = await self._run(self._state)

        def ended() -> None:
            self._surveyed = state

        return ended

    async def knows_any(self, algorithm: str) -> bool:
        """Whether any blob under that algorithm has a row."""
        sql = "SELECT 1 FROM blobs WHERE digest >= ? AND digest < ? LIMIT 1"
        return bool(await self._run(self._file.select, sql, (f"{algorithm}:", f"{algorithm};")))

    async def known_between(self, first: str, end: str) -> set[str]:
        """The digests with rows from `first` to `end` (excluded), as text."""
        rows = await self._run(
            self._file.select, "SELECT digest FROM blobs WHERE digest >= ? AND digest < ?", (first, end)
        )
        return {str(row[0]) for row in rows}

    async def found(self, files: Sequence[Found]) -> None:
        """Give files their rows that have none."""
        now = self._clock()
        rows = [(str(each.digest), each.size_bytes, min(each.last_use, now)) for each in files]
        await self._run(self._write, f"{_PUT} ON CONFLICT (digest) DO NOTHING", rows)

    # What others ask.

    async def entry(self, digest: Digest) -> Entry | None:
        """One blob's row."""
        self.write_uses()
        sql = f"SELECT {_COLUMNS} FROM blobs WHERE digest = ?"
        return next(iter(_entries(await self._run(self._file.select, sql, (str(digest),)))), None)

    async def entries(self, *, after: Digest | None = None, limit: int = 1000) -> list[Entry]:
        """Blobs in the order of their digests, at most `limit`; to go on, name the last one."""
        self.write_uses()
        sql = f"SELECT {_COLUMNS} FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?"
        return _entries(await self._run(self._file.select, sql, (str(after or ""), limit)))

    async def settled(self) -> Usage:
        """The figures, of all that was stored up to now."""
        await self._run(self._count)
        return self.usage

    async def oldest(self, limit: int) -> list[Entry]:
        """The blobs to give up first: by last use, manifests as if used a week later."""
        self.write_uses()
        return _entries(
            await self._run(self._file.select, _OLDEST, (0.0, 0, limit, MANIFEST_GRACE_S, 1, limit, limit))
        )

    def _write_uses_by_and_by(self) -> None:
        self._gather_uses()
        self._thread.submit(self._write_uses_in_turn)

    def _gather_uses(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unwritten.extend((stamp, str(digest)) for digest, stamp in self._touched.items())
        self._touched = {}

    # In the index's thread.

    def _write_uses_in_turn(self) -> None:
        """A few, then whatever else waits to be written, then more: nobody waits for a thousand of them."""
        self._write_some_uses(_USES_IN_TURN)
        if self._unwritten:
            with suppress(RuntimeError):  # closed: who closes it has them written
                self._thread.submit(self._write_uses_in_turn)

    def _write_some_uses(self, limit: int) -> None:
        rows = [self._unwritten.popleft() for _ in range(min(limit, len(self._unwritten)))]
        if rows:
            self._file.write("UPDATE blobs SET last_use = ? WHERE digest = ?", rows)

    def _forget_missing(self, digests: Sequence[Digest], holds: Callable[[Digest], bool]) -> list[Digest]:
        gone = [digest for digest in digests if not holds(digest)]
        rows = [(str(digest),) for digest in gone]
        if rows:
            self._write("DELETE FROM blobs WHERE digest = ?", rows)
            self._file.write("DELETE FROM descriptors WHERE digest = ?", rows)
        return gone

    def _write(self, sql: str, rows: Iterable[Row]) -> None:
        self._file.write(sql, rows)
        self._count()

    def _count(self) -> None:
        match self._file.select("SELECT blobs, size_bytes FROM totals", ()):
            case [(int(blobs), int(size_bytes))]:
                self.usage.blobs, self.usage.stored_bytes = blobs, size_bytes

    def _state(self) -> tuple[int, int]:
        return self._file.generation, self._file.lost_writes

    # Anywhere.

    def _stamp(self, timestamp: float) -> float:
        after_latest = max(self._latest + 1e-6, math.nextafter(self._latest, math.inf))
        self._latest = max(timestamp, after_latest)
        return self._latest

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(function, *arguments)))


def _number(rows: Sequence[Row]) -> float:
    match rows:
        case [(int() | float() as number,)]:
            return float(number)
        case _:
            return 0.0


def _entries(rows: Sequence[Row]) -> list[Entry]:
    entries = []
    for row in rows:
        match row:
            case (str(text), int(size_bytes), int() | float() as last_use, int(manifest)):
                with suppress(InvalidDigest, OverflowError, ValueError, OSError):  # a bit that flipped
                    entries.append(
                        Entry(
                            digest=Digest.parse(text),
                            size_bytes=size_bytes,
                            last_use=datetime.fromtimestamp(last_use, UTC),
                            manifest=bool(manifest),
                        )
                    )
    return entries
