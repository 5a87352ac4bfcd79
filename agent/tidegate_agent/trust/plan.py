"""Changing a trust store: decided first as a plan that can be shown, then carried out, then checked.

Removal asks update-ca-certificates(8) to deselect our certificate, through a copy of its configuration with
one line more: that way it drops the links and hash links and tells its hooks (Java's key store), which
deleting the file alone does not do, and nothing else is rebuilt as --fresh would.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidegate_agent.trust.store import Anchor, Store, below, content, trusted
from tidegate_core.errors import TidegateError

UPDATE_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Copy:
    """Put our certificate in place, whole or not at all; `source` is only named."""

    certificate: bytes
    source: Path
    target: Path

    def __str__(self) -> str:
        return f"copy {self.source} to {self.target}"

    def apply(self) -> None:
        part = self.target.with_name(f".{self.target.name}.part")  # no .crt: never taken for an anchor
        part.write_bytes(self.certificate)
        part.chmod(0o644)
        part.replace(self.target)


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a file or a link of ours; one that is gone already is fine."""

    path: Path

    def __str__(self) -> str:
        return f"delete {self.path}"

    def apply(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class DropLinks:
    """Delete what still points at the anchor afterwards: looked up late, since a rehash moves links."""

    store: Store
    anchor: Anchor

    def __str__(self) -> str:
        return f"delete links to {self.anchor.name}.pem left in {self.store.links_dir}"

    def apply(self) -> None:
        for path in (self.store.link(self.anchor), *self.store.hash_links(self.anchor)):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Update:
    """Make the bundle and links anew; `without` names an anchor to deselect."""

    store: Store
    without: str = ""

    def __str__(self) -> str:
        inside = f" in {self.store.root}" if self.store.root != Path("/") else ""
        return f"run {self.store.family.update}{inside}" + (
            f", dropping {self.without}" if self.without else ""
        )

    def apply(self) -> None:
        if not self.without:
            _run(self.store, [self.store.family.update])
            return
        selection = content(below(self.store.root, self.store.family.selection)) or b""
        with tempfile.NamedTemporaryFile(dir=below(self.store.root, "/tmp"), prefix="tidegate-") as file:
            file.write(selection.rstrip(b"\n") + f"\n!{self.without}\n".encode())
            file.flush()
            inside = f"/tmp/{Path(file.name).name}"
            _run(self.store, [self.store.family.update, "--certsconf", inside])


@dataclass(frozen=True, slots=True)
class Date:
    """Date the anchor after the bundle: a daemon that started between the two has read the old one."""

    path: Path

    def __str__(self) -> str:
        return f"set the time of {self.path} to when the bundle held it"

    def apply(self) -> None:
        os.utime(self.path)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order; none where nothing is to be done."""

    steps: Sequence[Copy | Date | Delete | DropLinks | Update] = field(default=())

    def __str__(self) -> str:
        return "\n".join(f"would {step}" for step in self.steps) or "nothing to do"

    def apply(self) -> None:
        """TidegateError at the first step that fails; running it again goes on from there."""
        for step in self.steps:
            try:
                step.apply()
            except PermissionError as error:
                raise TidegateError(
                    f"could not {step}: {error.strerror}", next_step="run this command as root, with sudo"
                ) from error
            except OSError as error:
                raise TidegateError(f"could not {step}: {error.strerror or error}") from error


def install_plan(store: Store, anchor: Anchor, wanted: bytes) -> Plan:
    """What makes the store hold the authority's certificate `wanted`, and no earlier one of it."""
    target, link = store.anchor_file(anchor), store.link(anchor)
    if wanted == content(target) and trusted(store.bundle, wanted) and link.exists():
        return Plan()
    # Without its link the anchor counts as new, so hash links and hooks follow a replaced certificate too.
    stale = (Delete(link),) if link.is_symlink() else ()
    return Plan((*stale, Copy(wanted, anchor.certificate, target), Update(store), Date(target)))


def remove_plan(store: Store, anchor: Anchor) -> Plan:
    """What leaves no trace of the anchor, whatever an interrupted run left of it."""
    target = store.anchor_file(anchor)
    present = content(target)
    in_bundle = store.holds(anchor) or (present is not None and trusted(store.bundle, present))
    linked = store.link(anchor).is_symlink() or bool(store.hash_links(anchor))
    if present is None and not linked and not in_bundle:
        return Plan()
    return Plan((Delete(target), Update(store, without=target.name), DropLinks(store, anchor)))


def _run(store: Store, command: list[str]) -> None:
    argv = command if store.root == Path("/") else ["chroot", str(store.root), *command]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UPDATE_TIMEOUT_S,
            env=_environment(os.environ),
            check=False,
        )
    except FileNotFoundError as error:
        step = "install ca-certificates: apt-get install ca-certificates"
        raise TidegateError(f"{argv[0]} is not installed", next_step=step) from error
    except subprocess.TimeoutExpired as error:
        raise TidegateError(f"{' '.join(argv)} did not end within {UPDATE_TIMEOUT_S} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        cause = f"{' '.join(argv)} failed ({done.returncode})" + (f": {said[-1]}" if said else "")
        raise TidegateError(cause, next_step="run it by hand to see more, with --verbose")


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Administrators' tools live in sbin, which not every root shell has in its path."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": environment.get("HOME", "/root")}
