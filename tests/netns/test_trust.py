"""The trust store of a real Debian or Ubuntu, in a mount namespace of its own: never the machine's."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.trusting import (
    BOUND,
    PROTECTED,
    TIDEGATE,
    Image,
    Machine,
    missing,
    prepared,
    trust_store_of_this_machine,
)
from tidegate_agent.trust import Anchor, trusted


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with some of the distribution's own certificates in its store, and none of ours."""
    if reason := missing():
        pytest.skip(reason)
    machines_own = trust_store_of_this_machine()
    yield prepared(Machine(tmp_path))
    assert trust_store_of_this_machine() == machines_own


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
    image = prepared(Image(tmp_path / "image"))
    before = machine.content()
    settings = {"TIDEGATE_STATE_DIR": "/srv/tidegate-of-a-test"}

    image.tidegate("trust", "install", "--root", image.root, **settings)

    certificate = (image.home / "srv/tidegate-of-a-test/ca/ca.pem").read_bytes()
    assert trusted(image.bundle, certificate)
    (link,) = (image.home / "ssl/certs").glob("tidegate-*.pem")
    assert str(link.readlink()).startswith("/usr/local/share/ca-certificates/tidegate-")
    assert not Path("/srv/tidegate-of-a-test").exists()
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
