"""A machine with a trust store of its own: the real tools of this one, on directories that a test owns.

Each command runs in a new mount namespace in which the store's directories are those of the test, so what a
command leaves behind is there for the next one and for the test. The machine's own store is read-only there.
Debian and Ubuntu only (update-ca-certificates).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tidegate_proxy.interception.authority import Authority

BOUND = {
    "ssl": "/etc/ssl",
    "local": "/usr/local/share/ca-certificates",
    "hooks": "/etc/ca-certificates/update.d",
    "selection": "/etc/ca-certificates.conf",
}
PROTECTED = ("/etc", "/usr/local/share", "/var/lib")
TIDEGATE = (sys.executable, "-c", "from tidegate_agent.cli import main; main()")
HOOK = "#!/bin/sh\ncat >> /etc/ssl/told\n"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine's trust store: directories below `home`, mounted over the real ones while a command runs."""

    home: Path

    def argv(self, *command: str, alone: bool = False) -> list[str]:
        """The command as it is to be started, with `environment`.

        `alone` means: with no network but loopback, and all its processes end with it.
        """
        # First of all the machine's own store becomes read-only, wherever the rest then mounts what.
        own = [f"mount --bind {place} {place} && mount -o remount,bind,ro {place}" for place in PROTECTED]
        mounts = [f"mount --bind {self.home / name} {self.root}{place}" for name, place in BOUND.items()]
        script = " && ".join([*own, *self.before, *mounts, 'exec "$@"'])
        apart = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"] if alone else []
        return ["unshare", "--mount", "--propagation", "private", *apart, "sh", "-c", script, "sh", *command]

    @property
    def environment(self) -> dict[str, str]:
        """Little, as a service has it; the machine's own certificate variables are left out."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": ":".join(sys.path),
            "TIDEGATE_STATE_DIR": str(self.state),
            "TIDEGATE_CONFIG": "/dev/null",
        }

    def run(self, *command: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs one command on this machine to its end."""
        return subprocess.run(
            self.argv(*command),
            env=self.environment | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def root(self) -> str:
        """Where this machine's root directory is for the command; "" is the usual place."""
        return ""

    @property
    def before(self) -> Sequence[str]:
        return ()

    def tidegate(self, *arguments: str, **env: str) -> str:
        """Runs a `tidegate` command that must succeed; what it printed."""
        done = self.run(*TIDEGATE, *arguments, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def update(self, *options: str) -> None:
        """Runs update-ca-certificates as its administrator would."""
        inside = ("chroot", self.root) if self.root else ()
        done = self.run(*inside, "update-ca-certificates", *options)
        assert done.returncode == 0, done.stderr

    @property
    def bundle(self) -> Path:
        return self.home / "ssl/certs/ca-certificates.crt"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def certificate(self) -> bytes:
        return (self.state / "ca/ca.pem").read_bytes()

    def anchors(self) -> list[str]:
        return sorted(path.name for path in (self.home / "local").iterdir())

    def content(self) -> dict[str, str | bytes]:
        """Every file and link of the store, but for what the hook noted."""
        found: dict[str, str | bytes] = {}
        for directory in ("ssl", "local"):
            for path in sorted((self.home / directory).rglob("*")):
                name = str(path.relative_to(self.home))
                if path.is_symlink():
                    found[name] = f"-> {path.readlink()}"
                elif path.is_file() and path.name != "told":
                    found[name] = path.read_bytes()
        return found

    def told(self) -> list[str]:
        """What update-ca-certificates told its hooks, by file name, in order."""
        lines = (self.home / "ssl/told").read_text().split()
        return [f"{line[0]}{Path(line[1:]).name}" for line in lines]

    def accepts_a_leaf_for(self, host: str, state: Path) -> tuple[bool, bool]:
        """Whether OpenSSL verifies a leaf of the authority in `state`: by the bundle, by the hash links."""
        authority = Authority.load_or_create(
            state / "ca", hosts=[host], machine_id=machine_id(), now=datetime.now(UTC)
        )
        leaf = self.home / "leaf.pem"
        leaf.write_bytes(authority.issue(host, datetime.now(UTC))[0])
        verify = ["openssl", "verify", "-verify_hostname", host]
        alone = {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/nonexistent"}
        by_bundle = self.run(*verify, "-CAfile", "/etc/ssl/certs/ca-certificates.crt", str(leaf), env=alone)
        by_links = self.run(*verify, "-CApath", "/etc/ssl/certs", str(leaf), env=alone)
        return by_bundle.returncode == 0, by_links.returncode == 0


class Image(Machine):
    """A system below another root directory, as an image builder has it; its programs are this machine's."""

    __slots__ = ()

    @property
    def root(self) -> str:
        return str(self.home / "root")

    @property
    def before(self) -> Sequence[str]:
        return (
            f"mkdir -p {self.root}",
            f"mount --bind / {self.root} && mount -o remount,bind,ro {self.root}",
            f"mount --bind /dev {self.root}/dev",
            f"mount -t tmpfs none {self.root}/tmp",
            f"mkdir -p {self.home}/srv && mount --bind {self.home}/srv {self.root}/srv",
        )


def machine_id() -> str:
    path = Path("/etc/machine-id")
    return path.read_text().strip() if path.exists() else ""


def prepared(machine: Machine) -> Machine:
    """The machine with some of the distribution's own certificates in its store, and none of ours."""
    (machine.home / "ssl/certs").mkdir(parents=True)
    shutil.copy("/etc/ssl/openssl.cnf", machine.home / "ssl")
    selected = [
        line for line in Path("/etc/ca-certificates.conf").read_text().splitlines() if line[:1] not in "#!"
    ]
    (machine.home / "selection").write_text("\n".join(selected[:3]) + "\n")  # fewer, for speed
    (machine.home / "local").mkdir()
    hook = machine.home / "hooks/tell"
    hook.parent.mkdir()
    hook.write_text(HOOK)
    hook.chmod(0o755)
    machine.run(
        "update-ca-certificates", "--fresh"
    )  # what the tool itself makes of it is the state to return to
    (machine.home / "ssl/told").write_text("")
    return machine


def missing() -> str:
    """Why there can be no such machine here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root; run: sudo script/test"
    found = shutil.which("update-ca-certificates", path="/usr/sbin:/sbin")
    return "" if found else "needs Debian or Ubuntu, and the package ca-certificates"


def trust_store_of_this_machine() -> list[tuple[str, int]]:
    """Its files with their times, to see that nothing reached it."""
    paths = [Path("/etc/ssl/certs/ca-certificates.crt"), *Path("/usr/local/share/ca-certificates").rglob("*")]
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()]
