"""The SQLite file of the index (WAL), and what happens when it cannot be used.

Damaged or of an unknown version: moved aside as `<name>.damaged`, and a new one begun. Not writable
at all, also while running: rows go to memory, and from there to a new file once one can be begun where
there is none. Full: the write is lost. Whatever is given up is said once, in a sentence. Every method
blocks; the index calls them in one thread.

This module does not know what the rows mean.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Row = tuple[str | int | float | bytes | None, ...]
T = TypeVar("T")

_VERSION = 1
RETURNS_EVERY_S = 10.0
_SCHEMA = """
CREATE TABLE descriptors (digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, size_bytes INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE tags (registry TEXT, repository TEXT, tag TEXT, media_type TEXT, digest TEXT NOT NULL,
    checked_at REAL NOT NULL, PRIMARY KEY (registry, repository, tag, media_type)) STRICT, WITHOUT ROWID;
CREATE TABLE public (registry TEXT, repository TEXT, checked_at REAL NOT NULL,
    PRIMARY KEY (registry, repository)) STRICT, WITHOUT ROWID;
"""


# Since the first version, and no reason for another: a program that does not know it leaves it alone.
_ADDED = """
CREATE TABLE IF NOT EXISTS shared (registry TEXT, repository TEXT, login TEXT, checked_at REAL NOT NULL,
    PRIMARY KEY (registry, repository, login)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (digest TEXT, registry TEXT, repository TEXT,
    PRIMARY KEY (digest, registry, repository)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listings (registry TEXT, repository TEXT, target TEXT, status INTEGER NOT NULL,
    fields TEXT NOT NULL, body BLOB NOT NULL, checked_at REAL NOT NULL,
    PRIMARY KEY (registry, repository, target)) STRICT;
"""

# Triggers keep the totals, which a start must not count a million rows for.
_CATALOGUE = """
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, last_use REAL NOT NULL,
    manifest INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_use ON blobs (manifest, last_use);
CREATE TABLE totals (blobs INTEGER NOT NULL, size_bytes INTEGER NOT NULL) STRICT;
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER blob_came AFTER INSERT ON blobs BEGIN
    UPDATE totals SET blobs = blobs + 1, size_bytes = size_bytes + new.size_bytes; END;
CREATE TRIGGER blob_went AFTER DELETE ON blobs BEGIN
    UPDATE totals SET blobs = blobs - 1, size_bytes = size_bytes - old.size_bytes; END;
"""


class _Damaged(Exception):
    """The file is not an index of this version."""


class IndexFile:
    """One connection to the file, replaced when it fails."""

    def __init__(
        self, path: Path, say: Callable[[str], None], *, returns_every_s: float = RETURNS_EVERY_S
    ) -> None:
        self._path = path
        self._returns_every_s = returns_every_s
        self._say = say
        self._said: set[str] = set()
        self._seen: os.stat_result | None = None
        self.generation = 0
        """How often a file was opened: another number, another file, maybe an empty one."""
        self.lost_writes = 0
        self._return_not_before = 0.0
        self._connection = self._open()

    @property
    def in_a_file(self) -> bool:
        """Whether what is written goes to the file, where others can read it."""
        return self._seen is not None

    def select(self, sql: str, parameters: Row) -> list[Row]:
        """All rows of a query that returns few; none when the file failed."""
        return self._attempt(lambda connection: connection.execute(sql, parameters).fetchall(), [])

    def write(self, sql: str, rows: Iterable[Row]) -> None:
        """One transaction: the statement once per row."""
        many = list(rows)
        self._follow()

        def transaction(connection: sqlite3.Connection) -> bool:
            with connection:
                connection.execute("BEGIN")
                connection.executemany(sql, many)
            return True

        if not self._attempt(transaction, False):
            self.lost_writes += 1

    def close(self) -> None:
        """Check the log in and close."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def _follow(self) -> None:
        """Begin anew when the file was removed or cut under us, which SQLite does not notice in WAL mode."""
        if self._seen is None:
            self._return()
            return
        try:
            now = self._path.stat()
        except OSError:
            now = None
        if now is not None and os.path.samestat(now, self._seen) and now.st_size >= self._seen.st_size:
            self._seen = now
            return
        self.close()
        if now is not None:
            self._move_aside("it was replaced or cut short")
        self._connection = self._open()

    def _return(self) -> None:
        """From memory to a file, where none is in the way: its directory is back, or its disk has room."""
        if time.monotonic() < self._return_not_before:
            return
        self._return_not_before = time.monotonic() + self._returns_every_s
        try:
            if self._path.exists() and self._path.stat().st_size:
                return
            _copy(self._connection, self._path)
            connection = _connect(self._path)
            self._seen = self._path.stat()
        except (sqlite3.DatabaseError, OSError, _Damaged):
            return
        self._connection.close()
        self._connection = connection
        self.generation += 1

    def _attempt(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do the work; once more on another connection when this one proves unusable."""
        try:
            return work(self._connection)
        except sqlite3.DatabaseError as error:
            if not self._replace(error):
                return otherwise
        try:
            return work(self._connection)
        except sqlite3.DatabaseError as error:
            self._say_once(f"the index {self._path} failed twice: {error}")
            return otherwise

    def _replace(self, error: sqlite3.DatabaseError) -> bool:
        """Whether the failed connection was replaced by one that may do better."""
        if _is_bug(error):
            raise error
        match _primary(error):
            case sqlite3.SQLITE_FULL | sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_NOMEM:
                self._say_once(f"the index {self._path} could not be written: {error}")
                return False
            case _:
                self.close()
                if _is_damage(error):
                    self._move_aside(str(error))
                self._connection = self._open()
                return True

    def _open(self) -> sqlite3.Connection:
        self.generation += 1
        for _ in range(2):
            try:
                connection = _connect(self._path)
                self._seen = self._path.stat()
                return connection
            except _Damaged as error:
                self._move_aside(str(error))
            except (sqlite3.DatabaseError, OSError) as error:
                if isinstance(error, OSError) or not _is_damage(error):
                    unusable = f"the index {self._path} cannot be used: {error}"
                    self._say_once(f"{unusable}; it is kept in memory until it can")
                    break
                self._move_aside(str(error))
        self._seen = None
        return _connect(None)

    def _move_aside(self, cause: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._say(f"the index {self._path} is damaged ({cause}): moved to {aside.name}, a new one is begun")
        with suppress(OSError):
            self._path.rename(aside)
        for suffix in ("-wal", "-shm"):  # they belong to the old file and would damage the new one
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def _copy(source: sqlite3.Connection, path: Path) -> None:
    """All of it into a file beside the path, then under its name; raises OSError, sqlite3.DatabaseError."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    os.close(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        target = sqlite3.connect(beside, isolation_level=None)
        try:
            source.backup(target)
        finally:
            target.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)  # of a file that is gone
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open or begin the file, or an index in memory; raise _Damaged, OSError, sqlite3.DatabaseError."""
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it 0644
    # Used by one thread at a time: the one that opens it, then the index's own.
    connection = sqlite3.connect(
        path or ":memory:", isolation_level=None, check_same_thread=False, timeout=2.0
    )
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version != (_VERSION if tables else 0):
            raise _Damaged(f"it has version {version}, this program knows {_VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        connection.executescript(_ADDED)
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'totals'").fetchone():
            connection.executescript(f"BEGIN; {_CATALOGUE} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _primary(error: sqlite3.DatabaseError) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # absent when sqlite3 itself raises
    return code & 0xFF


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return _primary(error) in damaged


def _is_bug(error: sqlite3.DatabaseError) -> bool:
    """A statement that no healthy file would take either; a table that vanished is damage."""
    wrong_use = isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError | sqlite3.DataError)
    return wrong_use or (_primary(error) == sqlite3.SQLITE_ERROR and "no such table" not in str(error))
