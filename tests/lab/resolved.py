"""systemd-resolved on a booted node, from Debian's own packages.

Their installation would replace the machine's /etc/resolv.conf, so script/test only unpacks them, into a
folder of the virtual environment; a node gets a copy of what is in there. Where the machine has the daemon
anyway, as Ubuntu does, that one is used.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .booted import Booted
from .booted import missing as systemd_missing
from .node import Node
from .waiting import until

DAEMON = "lib/systemd/systemd-resolved"
UNPACKED = Path(sys.prefix) / "unpacked"
STUB = "127.0.0.53"
STUB_RESOLV_CONF = "../run/systemd/resolve/stub-resolv.conf"
UNIT = "systemd-resolved.service"
TO_RESOLVED = "hosts: files resolve [!UNAVAIL=return] dns\n"


def missing() -> str:
    """Why systemd-resolved cannot run on a node here, or an empty string."""
    if reason := systemd_missing():
        return reason
    if (UNPACKED / DAEMON).exists() or Path("/", DAEMON).exists():
        return ""
    return "needs the unpacked package systemd-resolved; run: script/test --prepare"


def install(node: Node) -> None:
    """Put the daemon on a node that is not booted yet, not enabled."""
    if (UNPACKED / DAEMON).exists():
        _copy(UNPACKED, node)
    node.write(f"/etc/systemd/system/{UNIT}.d/lab.conf", "[Unit]\nStartLimitIntervalSec=0\n")
    node.run(["systemd-sysusers"]).or_raise()


class Resolved:
    """The daemon of one booted node; `stub` has the node's resolv.conf name it, as its package does."""

    def __init__(self, machine: Booted, servers: Sequence[object], *, settings: str = "") -> None:
        self.machine = machine
        self.node = machine.node
        self.configure(servers, settings)

    def configure(self, servers: Sequence[object], settings: str = "") -> None:
        """Ask these servers, and nothing but these settings; its cache is empty then."""
        lines = ["[Resolve]", "DNS=" + " ".join(map(str, servers)), "FallbackDNS=", "LLMNR=no"]
        self.node.write("/etc/systemd/resolved.conf", "\n".join([*lines, settings, ""]))
        self.restart()

    def restart(self) -> None:
        self.machine.systemctl("restart", UNIT)
        until(lambda: 53 in self.node.listening(), "systemd-resolved listens")

    def stop(self) -> None:
        self.machine.systemctl("stop", UNIT)

    def stub(self) -> None:
        link = self.node.path("/etc/resolv.conf")
        link.unlink(missing_ok=True)
        link.symlink_to(STUB_RESOLV_CONF)

    def nss(self) -> None:
        """Have libc ask the daemon without DNS."""
        self.node.write("/etc/nsswitch.conf", f"passwd: files\ngroup: files\n{TO_RESOLVED}")

    def ctl(self, *arguments: str) -> str:
        """`resolvectl`; it must succeed."""
        return self.machine.run("resolvectl", "--no-pager", *arguments).or_raise().stdout


def _copy(tree: Path, node: Node) -> None:
    for folder, _, files in os.walk(tree):
        for name in files:
            source = Path(folder, name)
            if source.is_symlink():
                continue  # resolvconf by another name
            inside = source.relative_to(tree)
            # /lib is a link to /usr/lib, and absolute links lead out of the node.
            target = node.path(f"/usr/{inside}" if inside.parts[0] == "lib" else str(inside))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
