"""A lab node on which systemd runs: as process 1 of a pid namespace, with a cgroup tree of its own.

Units, service users, ordering, watchdogs and reboots are then the real ones. Everything below runs where
systemd runs, as `nsenter` gets there; the file system, the network and what listens are the node's.

What systemd would do to the whole machine it cannot do here: /proc/sys and /sys are read-only, /dev is a
tmpfs with the usual few nodes, and the rights to modules, clock and kernel log are gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .node import Node
from .process import Completed, Process
from .waiting import until

MANAGER = "/lib/systemd/systemd"
WITHOUT = "-sys_module,-sys_time,-syslog,-sys_rawio,-mac_admin,-mac_override"

TARGET = "multi-user.target"
# Not even read-only file systems should have to stop these.
MASKED = ("systemd-sysctl", "systemd-binfmt", "systemd-modules-load", "systemd-timesyncd", "systemd-udevd")
# What this machine has installed and enabled is not the node's business.
NOTHING_ENABLED = "rm -rf /etc/systemd/system/*.wants/* /etc/rc[0-9S].d/S*"

BOOT = r"""
set -e
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,ro,bind /sys
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/dev
mount -t tmpfs -o mode=755 dev /run/dev
for node in null zero full random urandom tty; do
    : >/run/dev/$node
    mount --bind /dev/$node /run/dev/$node
done
mkdir /run/dev/pts /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /run/dev/pts
mount -t tmpfs shm /run/dev/shm
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set "$1" "$2" --unit="$3" --log-target=journal
"""


def cgroups() -> Path | None:
    """Where the machine has cgroup version 2, None where it has not."""
    mounts = Path("/proc/self/mounts").read_text()
    found = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.MULTILINE)
    return Path(found[1]) if found else None


def missing() -> str:
    """Why systemd cannot be booted here, or an empty string."""
    if not os.access(MANAGER, os.X_OK):
        return "needs the package systemd"
    above = cgroups()
    return "" if above and os.access(above, os.W_OK) else "needs a cgroup2 file system that root may write"


class Booted:
    """A node's systemd; use it as a context manager."""

    def __init__(self, node: Node) -> None:
        above = cgroups()
        assert above is not None
        self.node = node
        self._cgroup = above / f"tidegate-lab-{os.getpid()}-{node.init_pid}"
        self._beside = self._cgroup / "lab"
        self._holder: Process | None = None
        self._leader = 0
        for unit in MASKED:
            link = node.path(f"/etc/systemd/system/{unit}.service")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        node.run(["sh", "-c", NOTHING_ENABLED]).or_raise()
        self.boot()

    def __enter__(self) -> Booted:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def boot(self) -> None:
        """Start systemd and wait until it has started what is enabled."""
        self._cgroup.mkdir(exist_ok=True)
        # What the lab starts on the node is below the machine's root cgroup too, as everything is.
        self._beside.mkdir(exist_ok=True)
        (self._beside / "cgroup.procs").write_text(str(self.node.init_pid))
        inside = "/sys/fs/cgroup/" + str(self._cgroup.relative_to("/sys/fs/cgroup"))
        enter = f"echo 0 >{inside}/cgroup.procs; exec unshare --cgroup --mount --pid --fork --kill-child=KILL"
        self._holder = self.node.spawn(
            ["sh", "-c", f'{enter} sh -c "$@"', "sh", BOOT, "boot", WITHOUT, MANAGER, TARGET], log="systemd"
        )
        self._leader = until(self._found, "systemd runs", within_s=20) or 0
        until(
            lambda: self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"),
            "the node has booted",
            within_s=60,
        )

    def power_off(self) -> None:
        """As when the plug is pulled: every process ends, the disk stays as it is."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None
        if self._beside.exists():
            for pid in (self._beside / "cgroup.procs").read_text().split():
                (self._cgroup.parent / "cgroup.procs").write_text(pid)
        until(lambda: not self._populated(), "the last process has ended", within_s=20)
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()

    def reboot(self) -> None:
        """In order: what runs is stopped first, and what lives in memory is gone afterwards."""
        assert self._holder is not None
        self.run("systemctl", "reboot", "--no-wall")
        self._holder.wait(120)
        self._holder = None
        self.node.run(["sh", "-c", "rm -rf /run/dev /run/systemd /run/tidegate*"]).or_raise()
        self.boot()

    # Commands

    def run(
        self, *argv: str, env: Mapping[str, str] = {}, stdin: bytes = b"", timeout_s: float = 120
    ) -> Completed:
        """Run a command as root on the node, beside its services."""
        return self.node.run(self.entered(argv), env=env, stdin=stdin, timeout_s=timeout_s)

    def spawn(self, *argv: str, log: str = "") -> Process:
        return self.node.spawn(self.entered(argv), log=log or argv[0])

    def entered(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` where systemd runs, from the node."""
        return ["nsenter", "--target", str(self._leader), "--mount", "--pid", "--cgroup", "--", *argv]

    def systemctl(self, *arguments: str) -> str:
        """What systemctl says; it must succeed."""
        return self.run("systemctl", "--no-pager", *arguments).or_raise().stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output", "cat", "--unit", unit).stdout

    def status_of(self, pid: int) -> dict[str, str]:
        """`/proc/PID/status` of a process by its number there."""
        text = self.run("cat", f"/proc/{pid}/status").or_raise().stdout
        return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

    def pids(self, unit: str) -> list[int]:
        """Every process of a unit, its main process and what it left running."""
        listed = self.run("sh", "-c", f"cat /sys/fs/cgroup/system.slice/{unit}/cgroup.procs 2>/dev/null")
        return [int(line) for line in listed.stdout.split()]

    def _found(self) -> int | None:
        """systemd's number on the node."""
        for pid, command in self.node.processes().items():
            if command.startswith(MANAGER) and f"--unit={TARGET}" in command:
                return pid
        return None

    def _populated(self) -> bool:
        try:
            return "populated 1" in (self._cgroup / "cgroup.events").read_text()
        except FileNotFoundError:
            return False
