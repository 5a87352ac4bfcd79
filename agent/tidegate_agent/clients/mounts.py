"""Which file a path means to a process, told from its mount table (proc_pid_mountinfo(5)).

A file is named here by its file system and its path inside that: two processes for which `/etc/ssl/certs` has
the same name read the same trust store, whatever namespaces they are in. A service with a private /tmp does;
a container, a chroot, or a process with a bundle of its own mounted over the system's does not.

Unlike `/proc/PID/ns/mnt` and `/proc/PID/root`, the mount table needs no ptrace right. Pure: text in, names
out; symbolic links are not followed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class File:
    """A path inside one file system: `device` is major:minor."""

    device: str
    path: PurePosixPath


@dataclass(frozen=True, slots=True)
class Mount:
    """`root` is what of the file system is mounted, `point` where, as the process sees it."""

    number: int
    parent: int
    device: str
    root: PurePosixPath
    point: PurePosixPath


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Every well-formed line of a mount table; others are left out."""
    return tuple(mount for line in text.splitlines() if (mount := _mount(line)) is not None)


def file_at(mounts: Iterable[Mount], path: PurePosixPath) -> File | None:
    """The file that `path` means, None when no mount that the process can reach covers it."""
    covering = {}
    for mount in mounts:
        if path.is_relative_to(mount.point):
            covering[mount.number] = mount
    here = next((mount for mount in covering.values() if mount.parent not in covering), None)
    while here is not None:
        # From here downwards the first mount on the way hides what lies below; a mount on a mount, the lower.
        above = [mount for mount in covering.values() if mount.parent == here.number]
        if not above:
            return File(here.device, here.root / path.relative_to(here.point))
        here = min(above, key=lambda mount: len(mount.point.parts))
    return None


def _mount(line: str) -> Mount | None:
    try:
        number, parent, device, root, point, *_ = line.split(" ")
        return Mount(int(number), int(parent), device, _path(root), _path(point))
    except ValueError:
        return None


def _path(field: str) -> PurePosixPath:
    return PurePosixPath(_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), field))
