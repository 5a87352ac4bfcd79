"""The host's iptables programs, run with what they are to do on standard input (iptables-restore(8)).

Either flavour serves: the host's own `iptables` first, because that is where its other rules are and what its
operator looks at; where that one does not work here, the other by name.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tidegate_agent.steering.iptables.rules import Found, Version, found

_PREFIX: dict[Version, str] = {4: "iptables", 6: "ip6tables"}
_FLAVOURS = ("", "-legacy", "-nft")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_TIMEOUT_S = 10
_WAIT_S = 2  # for the lock of another iptables; the lease would end during a longer one
_LOCK = Path("/run/xtables.lock")


class ProgramFailed(OSError):
    """An iptables program is missing, or refused; the text is its own last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """A save and a restore program for one IP version."""

    version: Version
    flavour: str

    @property
    def name(self) -> str:
        """Such as `iptables-legacy`."""
        return f"{_PREFIX[self.version]}{self.flavour}"

    def look(self) -> Found:
        """What there is of ours; raises ProgramFailed."""
        raw = ""
        with contextlib.suppress(ProgramFailed):  # the kernel has no such table
            raw = self._run(["-save", "-t", "raw"])
        return found(self._run(["-save", "-t", "nat"]), raw)

    def restore(self, text: str) -> None:
        """Apply all of it or nothing; raises ProgramFailed."""
        self._run(["-restore", "--noflush", "-w", str(_WAIT_S)], text)

    def _run(self, words: list[str], text: str = "") -> str:
        import subprocess  # 3 MiB, which the supervisor spares on other hosts

        name = f"{self.name}{words[0]}"
        path = shutil.which(name, path=_PATH)
        if path is None:
            raise ProgramFailed(f"there is no {name} here")
        environment = {"PATH": _PATH, "LC_ALL": "C"} | lock_environment()
        try:
            done = subprocess.run(
                [path, *words[1:]],
                input=text,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                env=environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProgramFailed(f"{name}: {error}") from error
        if done.returncode != 0:
            raise ProgramFailed(f"{name}: {_last_words(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout


def flavours(version: Version) -> tuple[Programs, ...]:
    """What may be tried, in order."""
    return tuple(Programs(version=version, flavour=flavour) for flavour in _FLAVOURS)


def lock_environment() -> dict[str, str]:
    """Where iptables-legacy's lock is, for a user who may not open the host's."""
    if named := os.environ.get("XTABLES_LOCKFILE"):
        return {"XTABLES_LOCKFILE": named}
    if os.geteuid() == 0 or os.access(_LOCK, os.R_OK):
        return {}
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return {"XTABLES_LOCKFILE": f"{runtime}/xtables.lock"} if runtime else {}


def _last_words(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("#", "Try `", "Error occurred at line"))]
    return (plain or lines or [""])[-1]
