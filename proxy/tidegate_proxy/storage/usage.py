"""How much the store holds: counted once at the start, then kept up with every blob that is published.

The count at the start runs in a thread and only reads; until it has ended the numbers are of what was
published since.
"""

import os
import threading
from pathlib import Path


class Usage:
    """Blobs and their bytes; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.blobs = 0
        self.stored_bytes = 0

    def published(self, size_bytes: int) -> None:
        """A blob came in that was not there before."""
        self._add(1, size_bytes)

    def count(self, directory: Path) -> None:
        """Add what lies below a directory already. Blocks; a directory that cannot be read counts nothing."""
        for folder, _, names in os.walk(directory):
            sizes = [size for name in names if (size := _size(Path(folder) / name)) is not None]
            self._add(len(sizes), sum(sizes))

    def _add(self, blobs: int, size_bytes: int) -> None:
        with self._lock:
            self.blobs += blobs
            self.stored_bytes += size_bytes


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
