"""A real, small file system in a mount namespace of its own, reached through /proc/<pid>/root.

The process that holds the namespace is all there is to clean up: the mounts go with it.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(*, size_bytes: int, options: str = "rw") -> Iterator[Path]:
    """A tmpfs of that size; raises OSError where no mount namespace can be made."""
    with _holding(f"mount -t tmpfs -o size={size_bytes},{options} tidegate-test /mnt") as root:
        yield root / "mnt"


@contextmanager
def ext4_disk(*, size_bytes: int, backed_bytes: int) -> Iterator[Path]:
    """An ext4 on a loop device; backed by less than its size, it takes writes that cannot be written out."""
    script = (
        f"mount -t tmpfs -o size={backed_bytes} tidegate-test /mnt && mkdir /mnt/disk"
        f" && truncate -s {size_bytes} /mnt/image && mkfs.ext4 -q -O ^has_journal /mnt/image"
        " && mount -o loop /mnt/image /mnt/disk"
    )
    with _holding(script) as root:
        yield root / "mnt" / "disk"


@contextmanager
def _holding(script: str) -> Iterator[Path]:
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    holder = subprocess.Popen(
        [*unshare, "sh", "-c", f"{{ {script}; }} 2>&1 && echo ready && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        said = holder.stdout.readline()
        if said != "ready\n":
            raise OSError(said + holder.stdout.read())
        yield Path(f"/proc/{holder.pid}/root")
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def fill(directory: Path, *, leave_bytes: int = 0) -> Path:
    """Take all free space but `leave_bytes` with one file, which gives it back when removed."""
    ballast = directory / "ballast"
    free = os.statvfs(directory)
    with ballast.open("wb") as file:
        missing = free.f_bavail * free.f_frsize - leave_bytes
        while missing > 0:
            missing -= file.write(b"\0" * min(missing, 1 << 16))
    return ballast
