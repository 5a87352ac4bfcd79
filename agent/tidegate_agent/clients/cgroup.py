"""Which processes are in a cgroup, by the id that sock_diag tells (cgroups(7), version 2).

A cgroup's id is its directory's inode number, and `cgroup.procs` is readable by everybody. The root says
nothing about a process (where version 1 is in use all are in it), so it counts as unknown.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tidegate_agent.clients.mounts import parse_mounts

_WALK_EVERY_S = 1.0
_WALK_DIRECTORIES = 4096
_PROCS_BYTES = 65536


def hierarchy(mountinfo: str) -> Path | None:
    """Where version 2 is mounted, by the text of `/proc/self/mountinfo`; None where it is not."""
    lines = [line for line in mountinfo.splitlines() if " - cgroup2 " in line]
    return next((Path(mount.point) for mount in parse_mounts("\n".join(lines))), None)


class Cgroups:
    """Ids and their directories, walked through at most once a second, when an unknown id comes."""

    def __init__(self, root: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._walked = float("-inf")
        self._directories: dict[int, str] = {}

    def pids(self, cgroup_id: int) -> list[int] | None:
        """The processes in it, newest first; None when that cannot be told."""
        directory = self._directories.get(cgroup_id)
        if directory is None:
            directory = self._found(cgroup_id)
        if directory is None:
            return None
        try:
            descriptor = os.open(f"{directory}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
            try:
                listed = os.read(descriptor, _PROCS_BYTES).split()
            finally:
                os.close(descriptor)
        except OSError:  # gone, or threaded
            del self._directories[cgroup_id]
            return None
        return sorted((int(pid) for pid in listed if pid != b"0"), reverse=True)  # 0: not in our /proc

    def _found(self, cgroup_id: int) -> str | None:
        now = self._clock()
        if self._root is None or not cgroup_id or now < self._walked + _WALK_EVERY_S:
            return None
        self._walked = now
        self._directories = self._walk()
        return self._directories.get(cgroup_id)

    def _walk(self) -> dict[int, str]:
        found: dict[int, str] = {}
        waiting = [str(self._root)]
        while waiting and len(found) < _WALK_DIRECTORIES:
            try:
                with os.scandir(waiting.pop()) as entries:
                    folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
                    below = [(entry.inode(), entry.path) for entry in folders]
            except OSError:
                continue
            found.update(below)
            waiting.extend(path for _, path in below)
        return found
