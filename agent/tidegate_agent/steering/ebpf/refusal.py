"""Why eBPF cannot be used here, and what to type: from what the kernel said and what can be seen."""

import errno
import os
from pathlib import Path

from tidegate_agent.clients.cgroup import hierarchy
from tidegate_core.errors import StartRefused

USE_NFT = 'Set [steering] backend = "nft", or TIDEGATE_STEERING__BACKEND=nft.'
_RIGHTS = {"CAP_NET_ADMIN": 12, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21
_OUTSIDE = "/.."
_HIERARCHY_ROOT = 1  # the inode of the cgroup above all others


def root_cgroup(proc: Path = Path("/proc")) -> Path:
    """The cgroup (version 2) above every process of this host; raises StartRefused."""
    mounted = hierarchy((proc / "self/mountinfo").read_text(errors="replace"))
    if mounted is None:
        raise StartRefused(
            "no cgroup2 file system is mounted here",
            next_step=f"Mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup. {USE_NFT}",
        )
    first = (proc / "1/cgroup").read_text(errors="replace")
    path = next((line[3:] for line in first.splitlines() if line.startswith("0::")), "/")
    # A manager of services leaves the root of what it sees; a container's only program is in it.
    alone = path == "/" and mounted.stat().st_ino != _HIERARCHY_ROOT
    if path.startswith(_OUTSIDE) or alone:
        raise StartRefused(
            f"this process sees only a part of the host's cgroups: process 1 is in {path} of them",
            next_step=f"Run it in the host's cgroup namespace (docker run --cgroupns=host). {USE_NFT}",
        )
    return mounted


def missing_rights(proc: Path = Path("/proc")) -> list[str]:
    """What this process lacks for loading and attaching programs."""
    status = (proc / "self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if effective >> _CAP_SYS_ADMIN & 1:
        return []
    return [name for name, bit in _RIGHTS.items() if not effective >> bit & 1]


def refusal(error: OSError, *, lacking: list[str]) -> StartRefused:
    """What it means that the kernel refused."""
    release = os.uname().release
    if error.errno in (errno.EPERM, errno.EACCES) and lacking:
        names = " and ".join(lacking)
        return StartRefused(
            f"no right to load eBPF programs ({names})",
            next_step=f"Run it as root, or give it {names} (systemd: AmbientCapabilities=). {USE_NFT}",
        )
    if error.errno == errno.EPERM:
        return StartRefused(
            f"{error}: the right is there, so lockdown, a security module or a system call filter forbids it",
            next_step=f"See: cat /sys/kernel/security/lockdown; systemctl cat tidegate-agent. {USE_NFT}",
        )
    if error.errno == errno.ENOSYS:
        return StartRefused(f"this kernel ({release}) has no eBPF: {error}", next_step=USE_NFT)
    return StartRefused(
        f"this kernel ({release}) refused {error}",
        next_step=f"Linux 5.14 and newer have what it takes. {USE_NFT}",
    )
