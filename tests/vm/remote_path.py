"""Paths on another machine: they look like `pathlib.Path`, and each operation is one command over there.

Only what the lab does with a host's files. Everything else ends in an error, never in a file of this machine:
to the operating system such a path lies below /dev/null, where nothing can be.
"""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import IO, Any, ClassVar

Execute = Callable[[str, bytes], bytes]
"""Runs shell source over there with this standard input; its standard output. CommandFailed when it fails."""


class RemotePath(PosixPath):
    """A path on the machine of its class: see `paths_on`. What is derived from it is there as well."""

    execute: ClassVar[Execute]
    machine: ClassVar[str]

    def __fspath__(self) -> str:
        return f"/dev/null/on-{self.machine}{super().__str__()}"

    def _ask(self, command: str, stdin: bytes = b"") -> bytes:
        return type(self).execute(f"{command} {shlex.quote(str(self))}", stdin)

    def exists(self, **_: Any) -> bool:  # Any: newer Pythons have options that the lab does not use
        return self._is("e")

    def is_file(self, **_: Any) -> bool:
        return self._is("f")

    def is_dir(self, **_: Any) -> bool:
        return self._is("d")

    def is_symlink(self) -> bool:
        return self._is("L")

    def _is(self, kind: str) -> bool:
        name = shlex.quote(str(self))
        return type(self).execute(f"if test -{kind} {name}; then echo yes; fi", b"") != b""

    def read_bytes(self) -> bytes:
        return self._ask("cat --")

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        name = shlex.quote(str(self))
        type(self).execute(f"cat > {name}", bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode())

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]  # one signature for all modes
        """A copy of what is there now; for reading only."""
        match mode:
            case "rb":
                return io.BytesIO(self.read_bytes())
            case "r":
                return io.StringIO(self.read_text())
            case _:
                raise io.UnsupportedOperation(f"{self} is on {self.machine}: use write_bytes")

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self._ask(f"mkdir {'-p' if parents or exist_ok else ''} --")

    def unlink(self, missing_ok: bool = False) -> None:
        self._ask(f"rm {'-f' if missing_ok else ''} --")

    def chmod(self, mode: int, **_: Any) -> None:
        self._ask(f"chmod {mode:o} --")

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]  # Self of a class made at run time
        for name in self._ask("ls -A --").decode().splitlines():
            yield self / name

    def rglob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        name = shlex.quote(str(self))
        found = type(self).execute(
            f"find {name} -mindepth 1 -name {shlex.quote(pattern)} -printf '%P\\n'", b""
        )
        for relative in found.decode().splitlines():
            yield self / relative

    def stat(self, **_: Any) -> os.stat_result:
        """Mode, owner, size and time; the rest is 0."""
        mode, uid, gid, size, mtime = self._ask("stat --format '%f %u %g %s %Y' --").split()
        return os.stat_result((int(mode, 16), 0, 0, 0, int(uid), int(gid), int(size), 0, int(mtime), 0))


def paths_on(machine: str, execute: Execute) -> type[Path]:
    """The class of paths of one machine: `paths_on("node", execute)("/etc/hosts").read_text()`."""
    return type("RemotePath", (RemotePath,), {"machine": machine, "execute": staticmethod(execute)})
