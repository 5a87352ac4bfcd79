"""The trust store of a real Debian or Ubuntu, in a mount namespace of its own: never the machine's.

Each command runs in a new mount namespace in which the store's directories are copies that the test owns, so
what a command leaves behind is there for the next one and for the test.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tidegate_agent.trust import Anchor, trusted
from tidegate_proxy.authority import Authority

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

    def run(self, *command: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs one command on this machine."""
        # First of all the machine's own store becomes read-only, wherever the rest then mounts what.
        own = [f"mount --bind {place} {place} && mount -o remount,bind,ro {place}" for place in PROTECTED]
        mounts = [f"mount --bind {self.home / name} {self.root}{place}" for name, place in BOUND.items()]
        script = " && ".join([*own, *self.before, *mounts, 'exec "$@"'])
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": ":".join(sys.path),
                "TIDEGATE_STATE_DIR": str(self.home / "state"),
                "TIDEGATE_CONFIG": "/dev/null",
            }
            | (env or {}),
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


def new(machine: Machine) -> Machine:
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


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with some of the distribution's own certificates in its store, and none of ours."""
    if os.geteuid() != 0 or not shutil.which("update-ca-certificates", path="/usr/sbin:/sbin"):
        pytest.skip("needs root, and the package ca-certificates")
    machines_own = trust_store_of_this_machine()
    yield new(Machine(tmp_path))
    assert trust_store_of_this_machine() == machines_own


def trust_store_of_this_machine() -> list[tuple[str, int]]:
    paths = [Path("/etc/ssl/certs/ca-certificates.crt"), *Path("/usr/local/share/ca-certificates").rglob("*")]
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()]


def test_the_machine_s_own_store_cannot_be_written_from_here(machine: Machine, tmp_path: Path) -> None:
    """The guard of this module: a mistake in it must not reach the machine that runs it."""
    (tmp_path / "image").mkdir()
    bare = Image(tmp_path / "image")
    for name in BOUND:
        subprocess.run(["cp", "-a", str(machine.home / name), str(bare.home / name)], check=True)

    for place in PROTECTED:
        done = bare.run("touch", f"{place}/tidegate-test")
        assert (done.returncode, done.stderr.endswith("Read-only file system\n")) == (1, True)


def test_install_makes_the_authority_and_clients_accept_its_leaves(machine: Machine) -> None:
    """N15: by the bundle and by OpenSSL's hash links; the key stays where it was made."""
    said = machine.tidegate("trust", "install")

    assert trusted(machine.bundle, machine.certificate())
    assert machine.accepts_a_leaf_for("ghcr.io", machine.state) == (True, True)
    assert not any(b"PRIVATE KEY" in text for text in machine.content().values() if isinstance(text, bytes))
    assert "installed" in said
    assert "restart" in said


def test_a_second_install_changes_nothing_and_says_so(machine: Machine) -> None:
    """N15: idempotent."""
    machine.tidegate("trust", "install")
    before, inode = machine.content(), machine.bundle.stat().st_ino

    said = machine.tidegate("trust", "install")

    assert "nothing to do" in said
    assert machine.content() == before
    assert machine.bundle.stat().st_ino == inode


def test_remove_leaves_the_store_as_it_was(machine: Machine) -> None:
    """I4: no file, link, hash link or line of the bundle remains."""
    before = machine.content()
    machine.tidegate("trust", "install")
    assert machine.content() != before

    machine.tidegate("trust", "remove")

    assert machine.content() == before
    assert "nothing to do" in machine.tidegate("trust", "remove")


def test_remove_works_when_the_authority_is_gone(machine: Machine) -> None:
    """I4: also after somebody deleted the state directory."""
    before = machine.content()
    machine.tidegate("trust", "install")
    shutil.rmtree(machine.state)

    assert machine.run(*TIDEGATE, "trust", "status").returncode == 1
    assert "tidegate trust remove" in machine.run(*TIDEGATE, "trust", "status").stdout
    machine.tidegate("trust", "remove")
    assert machine.content() == before


def test_remove_finishes_what_deleting_the_file_by_hand_left(machine: Machine) -> None:
    """I4: update-ca-certificates alone leaves a dangling link and a hash link."""
    before = machine.content()
    machine.tidegate("trust", "install")
    (machine.home / "local" / machine.anchors()[0]).unlink()
    machine.update()
    assert machine.content() != before

    machine.tidegate("trust", "remove")

    assert machine.content() == before


def test_hooks_learn_of_the_anchor_and_of_its_removal(machine: Machine) -> None:
    """I4: Java's key store is one of those hooks; it would keep the certificate for good."""
    machine.tidegate("trust", "install")
    name = f"{Anchor.of(machine.state, root=Path('/')).name}.pem"
    machine.tidegate("trust", "remove")

    assert machine.told() == [f"+{name}", f"-{name}"]


def test_after_a_change_of_hosts_install_replaces_the_certificate(machine: Machine) -> None:
    """I7: the old certificate does not stay trusted beside the new one."""
    machine.tidegate("trust", "install")
    old = machine.certificate()
    hosts = {
        "TIDEGATE_REGISTRY": '[{"name": "x", "hosts": ["x.example"]}]',
        "TIDEGATE_DEFAULT_REGISTRIES": "false",
    }

    assert machine.run(*TIDEGATE, "trust", "install", "--dry-run", env=hosts).returncode == 0
    machine.tidegate("trust", "install", **hosts)

    assert machine.certificate() != old
    assert not trusted(machine.bundle, old)
    assert machine.accepts_a_leaf_for("x.example", machine.state) == (True, True)
    assert len(machine.anchors()) == 1


def test_a_new_key_replaces_the_old_one_in_bundle_and_links(machine: Machine) -> None:
    """I7: a key from a golden image, or one whose directory was lost."""
    before = machine.content()
    machine.tidegate("trust", "install")
    old = machine.certificate()
    shutil.rmtree(machine.state)

    machine.tidegate("trust", "install")

    assert not trusted(machine.bundle, old)
    assert machine.accepts_a_leaf_for("ghcr.io", machine.state) == (True, True)
    machine.tidegate("trust", "remove")
    assert machine.content() == before


def test_two_installations_on_one_machine_do_not_touch_each_other(machine: Machine) -> None:
    """I4: removing one keeps the other, its hash link too, whichever came first."""
    other = machine.home / "other"
    machine.tidegate("trust", "install")
    machine.tidegate("trust", "install", TIDEGATE_STATE_DIR=str(other))
    assert len(machine.anchors()) == 2

    machine.tidegate("trust", "remove")

    assert not trusted(machine.bundle, machine.certificate())
    assert machine.accepts_a_leaf_for("ghcr.io", other) == (True, True)


def test_a_dry_run_shows_the_plan_and_changes_nothing(machine: Machine) -> None:
    """STYLE 6: a change to the machine is a value first."""
    before = machine.content()

    said = machine.tidegate("trust", "install", "--dry-run")
    assert "would copy" in said
    assert "would run update-ca-certificates" in said
    assert machine.content() == before
    assert not machine.state.exists()

    machine.tidegate("trust", "install")
    installed = machine.content()
    assert "would delete" in machine.tidegate("trust", "remove", "--dry-run")
    assert machine.content() == installed


def test_status_tells_store_certificate_names_and_what_to_type(machine: Machine) -> None:
    """DESIGN 9: before, between and after."""
    before = machine.run(*TIDEGATE, "trust", "status")
    machine.tidegate("trust", "install")
    between = machine.tidegate("trust", "status")
    machine.tidegate("trust", "remove")
    after = machine.run(*TIDEGATE, "trust", "status")

    assert before.returncode == after.returncode == 1
    assert "does not exist" in before.stdout
    assert "tidegate trust install" in before.stdout
    assert "tidegate trust install" in after.stdout
    assert "trusted      yes" in between
    assert "sha256       " in between
    assert "pkg.dev" in between
    assert "/etc/ssl/certs/ca-certificates.crt" in between


def test_another_root_directory_is_changed_and_this_one_is_not(tmp_path: Path, machine: Machine) -> None:
    """N15: building an image; links inside it are those that hold inside it."""
    (tmp_path / "image").mkdir()
    image = new(Image(tmp_path / "image"))
    before = machine.content()
    settings = {"TIDEGATE_STATE_DIR": "/srv/tidegate"}

    image.tidegate("trust", "install", "--root", image.root, **settings)

    certificate = (image.home / "srv/tidegate/ca/ca.pem").read_bytes()
    assert trusted(image.bundle, certificate)
    (link,) = (image.home / "ssl/certs").glob("tidegate-*.pem")
    assert str(link.readlink()).startswith("/usr/local/share/ca-certificates/tidegate-")
    assert not Path("/srv/tidegate").exists()
    assert machine.content() == before

    image.tidegate("trust", "remove", "--root", image.root, **settings)
    assert not trusted(image.bundle, certificate)
    assert not list((image.home / "ssl/certs").glob("tidegate-*"))


@pytest.mark.parametrize(
    ("os_release", "told"),
    [
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "update-ca-trust"),
        ("ID=opensuse-leap\nID_LIKE='suse opensuse'", "/etc/pki/trust/anchors/"),
        ("ID=alpine", "/usr/local/share/ca-certificates/"),
        ("ID=arch", "trust anchor --store"),
        ("ID=plan9", "by hand"),
    ],
)
def test_an_unsupported_family_is_told_the_manual_step(machine: Machine, os_release: str, told: str) -> None:
    """N15: families that come later."""
    (machine.home / "elsewhere/etc").mkdir(parents=True)
    (machine.home / "elsewhere/etc/os-release").write_text(os_release)

    done = machine.run(*TIDEGATE, "trust", "install", "--root", str(machine.home / "elsewhere"))

    assert done.returncode == 1
    assert "is not supported yet" in done.stderr
    assert told in done.stderr


def test_a_store_that_cannot_be_written_is_an_error_with_a_next_step(machine: Machine) -> None:
    """DESIGN 9: without root, and on a read-only file system."""
    gone = Path("/srv/tidegate-of-a-test")  # readable by nobody too, as the test's own directory is not
    (machine.home / "local" / f"{Anchor.of(gone, root=Path('/')).name}.crt").write_bytes(b"left behind")
    machine.tidegate("trust", "install")
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")

    as_nobody = machine.run(*nobody, *TIDEGATE, "trust", "remove", env={"TIDEGATE_STATE_DIR": str(gone)})
    read_only = machine.run(
        "sh", "-c", 'mount -o remount,bind,ro /etc/ssl && exec "$@"', "sh", *TIDEGATE, "trust", "remove"
    )

    assert as_nobody.returncode == read_only.returncode == 1
    assert "as root" in as_nobody.stderr
    assert "update-ca-certificates" in read_only.stderr
    assert "Traceback" not in as_nobody.stderr + read_only.stderr
