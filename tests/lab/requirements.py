"""What the lab needs of the machine, and the reason to skip when something is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

# Program -> the Debian package that has it.
PROGRAMS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "nft": "nftables",
    "iptables": "iptables",
    "ipset": "ipset",
    "dnsmasq": "dnsmasq-base",
    "unbound": "unbound",
    "docker-registry": "docker-registry",
    "skopeo": "skopeo",
    "podman": "podman",
    "buildah": "buildah",
    "containerd": "containerd",
    "ctr": "containerd",
    "dockerd": "docker.io",
    "docker": "docker.io",
    "busybox": "busybox-static",
    "update-ca-certificates": "ca-certificates",
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "squid": "squid-openssl",
    "faketime": "faketime",
}


def missing() -> str:
    """Why the lab cannot run here, or an empty string."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root (network and mount namespaces); run: sudo script/test"
    packages = packages_missing()
    return f"the lab needs Debian packages; run: apt install {' '.join(packages)}" if packages else ""


def packages_missing(programs: Iterable[str] = tuple(PROGRAMS)) -> list[str]:
    """The Debian packages of those of these programs that are not installed."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({PROGRAMS[name] for name in programs if not shutil.which(name, path=search)})
