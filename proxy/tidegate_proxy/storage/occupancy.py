"""How full the file system of the store is, and what of it is in partial files. Blocks."""

import os
from contextlib import suppress
from pathlib import Path

from tidegate_proxy.storage.eviction import Occupancy

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's (stat(2))


def occupancy(state_dir: Path, *, stored_bytes: int, largest_bytes: int) -> Occupancy | None:
    """What is taken now; None when nobody can tell."""
    try:
        disk = os.statvfs(state_dir)
    except OSError:
        return None
    return Occupancy(
        stored_bytes=stored_bytes,
        partial_bytes=partial_bytes(state_dir / "partial", largest_bytes=largest_bytes),
        free_bytes=disk.f_bavail * disk.f_frsize,
        disk_bytes=disk.f_blocks * disk.f_frsize,
    )


def partial_bytes(partials: Path, *, largest_bytes: int) -> int:
    """What partial files take, holes not counted.

    One that is larger than `largest_bytes` will not be kept: blobs do not have to go for it.
    """
    total = 0
    with suppress(OSError), os.scandir(partials) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_size <= largest_bytes:
                    total += status.st_blocks * _BLOCK_BYTES
    return total
