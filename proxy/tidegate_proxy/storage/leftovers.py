"""What fetches that did not end have left in `partial`: listed, and bounded.

    <hex>, <hex>.extents      bytes of a blob and their record: resumed when somebody asks again
    <hex>.<pid>.<number>      a manifest that was being put: never resumed

A file whose name is none of these is nobody's business here and stays. A blob's file that another process
still fills is locked (flock(2)) and stays, too. Every function here blocks.
"""

import fcntl
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RECORD_SUFFIX = ".extents"
MAX_AGE_S = 3 * 24 * 3600.0
MAX_BYTES = 8 << 30

_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_PUT = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})\.\d+\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An unfinished blob: the bytes it takes on disk (a sparse file's holes take none), its last change."""

    path: Path
    disk_bytes: int
    changed_at: float
    """Seconds since the epoch."""

    def remove(self) -> bool:
        """Remove it with its record, unless somebody fills it right now; whether it is gone."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            if not locked(fd):
                return False
            with suppress(OSError):
                record_of(self.path).unlink()
            self.path.unlink(missing_ok=True)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def record_of(path: Path) -> Path:
    """Where the record of a partial file is."""
    return path.with_name(path.name + RECORD_SUFFIX)


def locked(fd: int) -> bool:
    """Take the lock of a partial file, for as long as it is open; False when another one holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def leftovers(directory: Path) -> list[Leftover]:
    """The unfinished blobs of `<state>/partial`, those that are being filled included; newest first."""
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _BLOB.fullmatch(entry.name):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append(
                            Leftover(
                                path=Path(entry.path),
                                disk_bytes=status.st_blocks * 512,
                                changed_at=status.st_mtime,
                            )
                        )
    return sorted(found, key=lambda each: each.changed_at, reverse=True)


def trim(directory: Path, *, now: float, max_age_s: float = MAX_AGE_S, max_bytes: int = MAX_BYTES) -> None:
    """Remove what is older than `max_age_s`, then the oldest until the rest fits `max_bytes`."""
    kept_bytes = 0
    for leftover in leftovers(directory):
        kept_bytes += leftover.disk_bytes
        if now - leftover.changed_at > max_age_s or kept_bytes > max_bytes:
            leftover.remove()


def tidy(directory: Path) -> set[str]:
    """At the start: remove what cannot be resumed; returns the names of what may be.

    Raises OSError when the directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = {entry.name for entry in entries}
    orphans = _records_without_bytes(names)
    for name in names:
        path = directory / name
        if _PUT.fullmatch(name) or name in orphans:
            with suppress(OSError):
                path.unlink()
        elif _BLOB.fullmatch(name) and name + RECORD_SUFFIX not in names:
            Leftover(path=path, disk_bytes=0, changed_at=0).remove()
    return {name for name in names if name + RECORD_SUFFIX in names}


def _records_without_bytes(names: set[str]) -> set[str]:
    records = {name: name.removesuffix(RECORD_SUFFIX) for name in names if name.endswith(RECORD_SUFFIX)}
    return {name for name, blob in records.items() if _BLOB.fullmatch(blob) and blob not in names}
