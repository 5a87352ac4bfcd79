"""Passwords in memory, and the files they are read from.

A `Secret` is text that shows itself only to who calls `reveal`. A password file is read again when it
changes, without its trailing line end; what lies inside stays as it is, so a JSON key file (GCR's
`_json_key`) is one password. This module knows no registry and sends nothing.
"""

import asyncio
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

MAX_PASSWORD_BYTES = 64 * 1024
LOOK_EVERY_S = 1.0


class Secret:
    """Text that no representation, comparison or format shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one request that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """What is wrong, and what to type or check; empty when nothing is. A harmless one stops nothing."""

    cause: str = ""
    next_step: str = ""
    harmless: bool = False

    def __bool__(self) -> bool:
        return bool(self.cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A password as it is now; `version` differs once it has changed. Without a secret, why there is none."""

    version: int
    secret: Secret | None = field(default=None, repr=False)
    complaint: Complaint = Complaint()


class SecretSource(Protocol):
    """Where a password comes from; `name` is what a person would call it."""

    name: str

    async def read(self) -> Reading: ...


class GivenSecret:
    """A password that was handed over in memory."""

    def __init__(self, secret: Secret, *, name: str) -> None:
        self.name = name
        self._reading = Reading(version=1, secret=secret)

    async def read(self) -> Reading:
        return self._reading


class PasswordFile:
    """A password in a file, looked at once a second at most and only when somebody needs it."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = str(path)
        self._path = path
        self._clock = clock
        self._looked_at = float("-inf")
        self._seen: object = None
        self._reading = Reading(version=0)
        self._looking = asyncio.Lock()

    async def read(self) -> Reading:
        if self._clock() - self._looked_at < LOOK_EVERY_S:
            return self._reading
        async with self._looking:
            if self._clock() - self._looked_at >= LOOK_EVERY_S:
                await asyncio.to_thread(self._look)
                self._looked_at = self._clock()
        return self._reading

    def _look(self) -> None:
        try:
            found = self._path.stat()
            seen: object = (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode, found.st_uid)
        except OSError as error:
            found, seen = None, error.errno
        if seen == self._seen:
            return
        self._seen = seen
        secret, complaint = _read(self._path)
        self._reading = Reading(version=self._reading.version + 1, secret=secret, complaint=complaint)


def _read(path: Path) -> tuple[Secret | None, Complaint]:
    """The password, or why there is none; a file that is open to everybody is used, with a complaint."""
    try:
        # Not blocking: where somebody put a pipe, nobody may ever write.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return None, Complaint(cause=f"{path} is not a file", next_step=f"ls -l {path}")
            content = os.read(file, MAX_PASSWORD_BYTES + 1)
        finally:
            os.close(file)
    except FileNotFoundError:
        step = f"install -m 600 /dev/stdin {path}  (then the password, Enter, Ctrl-D)"
        return None, Complaint(cause=f"{path} does not exist", next_step=step)
    except OSError as error:
        step = f"ls -l {path}  (the user that Tidegate runs as must be able to read it)"
        return None, Complaint(cause=f"{path} cannot be read: {error.strerror}", next_step=step)
    if len(content) > MAX_PASSWORD_BYTES:
        cause = f"{path} is too large for a password: more than {MAX_PASSWORD_BYTES} bytes"
        return None, Complaint(cause=cause, next_step=f"ls -l {path}")
    try:
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        cause = f"{path} is not UTF-8 text (byte {error.start})"
        return None, Complaint(cause=cause, next_step="write the password into it as text")
    if not password:
        return None, Complaint(cause=f"{path} is empty", next_step="write the password into it")
    if found.st_mode & stat.S_IROTH:
        cause = f"{path} can be read by every user of this machine"
        return Secret(password), Complaint(cause=cause, next_step=f"chmod o-rwx {path}", harmless=True)
    return Secret(password), Complaint()
