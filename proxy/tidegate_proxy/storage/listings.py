"""Lists that registries answered: of a repository's tags, and of what refers to a digest.

They have no digest that anybody asks for, so they are rows and no blobs, bodies compressed. Those that were
confirmed longest ago go first when all of them take more than their limit. One thread of the index runs the
SQL. This module does not know who may read, and does not decide what is stale.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.members import InThread, Select

LIMIT_BYTES = 32 * 1024 * 1024
"""Of compressed bodies, on disk."""
LIMIT_ROWS = 10_000

_EXCESS = """
DELETE FROM listings WHERE rowid IN (
    SELECT rowid FROM (
        SELECT rowid, row_number() OVER newest AS place, sum(length(body)) OVER newest AS total
          FROM listings WINDOW newest AS (ORDER BY checked_at DESC, rowid DESC))
     WHERE place > ? OR total > ?)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """An answer as it came: `fields` are the header fields that describe it, `checked_at` is aware."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    checked_at: datetime


class Listings:
    """The rows. Used on the event loop."""

    def __init__(
        self,
        file: IndexFile,
        in_thread: InThread,
        select: Select,
        *,
        limit_bytes: int = LIMIT_BYTES,
        limit_rows: int = LIMIT_ROWS,
    ) -> None:
        self._file = file
        self._in_thread = in_thread
        self._select = select
        self._limits = (limit_rows, limit_bytes)

    async def get(self, registry: str, repository: str, target: str) -> Listing | None:
        """What the registry last answered to that path and query."""
        sql = (
            "SELECT status, fields, body, checked_at FROM listings"
            " WHERE registry = ? AND repository = ? AND target = ?"
        )
        return _listing(await self._select(sql, (registry, repository, target)))

    async def put(self, registry: str, repository: str, target: str, listing: Listing) -> None:
        """Keep it in place of the last answer."""
        row: Row = (
            *(registry, repository, target, listing.status, json.dumps(dict(listing.fields))),
            *(zlib.compress(listing.body), listing.checked_at.timestamp()),
        )
        await self._in_thread(self._put, row)

    async def forget(self, registry: str | None = None, repository: str | None = None) -> None:
        """Those of one repository, or all of them."""
        if registry is None:
            await self._in_thread(self._file.write, "DELETE FROM listings", [()])
        else:
            sql = "DELETE FROM listings WHERE registry = ? AND repository = ?"
            await self._in_thread(self._file.write, sql, [(registry, repository)])

    def _put(self, row: Row) -> None:
        self._file.write(
            "INSERT OR REPLACE INTO listings (registry, repository, target, status, fields, body, checked_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [row],
        )
        self._file.write(_EXCESS, [self._limits])


def _listing(rows: Sequence[Row]) -> Listing | None:
    match rows:
        case [(int(status), str(fields), bytes(body), float(checked_at))]:
            try:
                return Listing(
                    status=status,
                    fields={str(name): str(value) for name, value in json.loads(fields).items()},
                    body=zlib.decompress(body),
                    checked_at=datetime.fromtimestamp(checked_at, UTC),
                )
            except (ValueError, AttributeError, zlib.error, OverflowError, OSError):
                return None  # a bit that flipped: asked for again
        case _:
            return None
