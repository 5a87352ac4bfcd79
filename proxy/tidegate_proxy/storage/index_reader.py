"""A second connection to the index, which reads while the first one writes (SQLite's WAL).

So a look-up waits for no transaction. It only reads, repairs nothing and says nothing: when it cannot tell,
the writer is to be asked. Its methods block; the index calls them in one thread.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from tidegate_proxy.storage.index_file import IndexFile, Row


class IndexReader:
    """Follows the file: opened when first asked, and again when the writer has begun another one."""

    def __init__(self, path: Path, file: IndexFile) -> None:
        self._uri = f"file:{quote(str(path))}?mode=ro"
        self._file = file
        self._generation: int | None = None
        self._connection: sqlite3.Connection | None = None

    def select(self, sql: str, parameters: Row) -> list[Row] | None:
        """All rows of a query that returns few; None when the writer is to be asked."""
        if not self._file.in_a_file:
            return None
        try:
            if self._connection is None or self._generation != self._file.generation:
                self._reopen()
            assert self._connection is not None
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError:
            self.close()
            return None

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _reopen(self) -> None:
        self.close()
        self._generation = self._file.generation
        self._connection = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, check_same_thread=False, timeout=0.1
        )
