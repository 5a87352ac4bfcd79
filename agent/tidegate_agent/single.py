"""One agent per host: a lock file that names the process holding it (flock(2)).

The lock is taken by the supervisor before it forks, so it lives as long as either of them. The kernel frees
it when the last holder ends, however that happens. The nft table is the stronger guard; this one also covers
the other back ends, and names the process to stop.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from tidegate_core.errors import StartRefused


class SingleInstance:
    """The held lock; `release` it, or leave the `with` block."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, runtime_dir: Path, *, role: str = "agent") -> "SingleInstance":
        """Take `<runtime_dir>/<role>.lock`; raises StartRefused naming the process that has it."""
        path = runtime_dir / f"{role}.lock"
        try:
            runtime_dir.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                if _locked(descriptor, path):
                    break
                os.close(descriptor)  # its owner removed the file between our open and our lock
        except OSError as error:
            raise StartRefused(
                f"cannot lock {path}: {error.strerror}",
                next_step=f"Make it writable for this user, or set runtime_dir: ls -ld {runtime_dir}",
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(path, descriptor)

    def release(self) -> None:
        """Remove the file and give the lock up. Idempotent."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def let_go(self) -> None:
        """Close this process's share of the lock: what is held from now on is the other process's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "SingleInstance":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _locked(descriptor: int, path: Path) -> bool:
    """Lock the open file; False when the path names another file by now. Raises StartRefused when held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StartRefused(
            f"another {path.stem} runs on this host: process {pid} holds {path}",
            next_step=f"Look at it with: tidegate status; stop it with: kill {pid}",
        ) from None
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
