"""What is made once and kept between runs, in a folder outside the checkout: see README.md.

    images/<key>/      the disk that machines start from; the key is of the script that makes it
    ready-<key>/       machines that cloud-init has set up; the key is of all that took part in it

The folder is `TIDEGATE_VM_CACHE`, else tidegate-vm in `XDG_CACHE_HOME` or /var/cache. It may be deleted at
any time; one `ready-…` is kept, the newest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
MAKE_IMAGE = Path(__file__).with_name("make-image")
IMAGE_FILES = ("root.qcow2", "vmlinuz", "initrd", "key")
SET_UP_BY = (
    *("agent", "core", "dns", "proxy", "script", "systemd", "vagrant", "pyproject.toml"),
    *("tests/lab", "tests/vm"),
)
NOT_BY = ("tests/vm/test_", "tests/vm/conftest.py", "tests/vm/README.md")


def folder() -> Path:
    named = os.environ.get("TIDEGATE_VM_CACHE", "")
    found = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "tidegate-vm"
    found.mkdir(parents=True, exist_ok=True)
    return found


def image() -> Path:
    """The folder with the disk; made when it is not there, which takes a mirror and some minutes."""
    found = folder() / "images" / _key([MAKE_IMAGE])
    if not all((found / name).exists() for name in IMAGE_FILES):
        subprocess.run(["nice", "-n", "10", MAKE_IMAGE, found], check=True, stdin=subprocess.DEVNULL)
    return found


def ready() -> Path:
    """Where machines of this checkout, as it is now, are kept; not there when there are none."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SET_UP_BY],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = sorted(name for name in listed.split("\0") if name and not name.startswith(NOT_BY))
    files = [CHECKOUT / name for name in names]
    return folder() / f"ready-{_key(file for file in files if file.exists())}"


def keep_only(kept: Path) -> None:
    """Delete the machines of other checkouts."""
    for other in folder().glob("ready-*"):
        if other != kept:
            shutil.rmtree(other)


def _key(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(CHECKOUT)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
