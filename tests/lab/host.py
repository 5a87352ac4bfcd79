"""A lab host: a set of namespaces held by one process, which dies with whoever opened the host.

A host has its own network, processes, hostname and file system (an overlay over the machine's root, its
writable part and /run, /tmp, /srv and /var/lib/tidegate on tmpfs). Nothing is bound into /run/netns or
written to the machine: with the last process of the host everything is gone. See `init.py` for the inside.

Open hosts from a thread that lives as long as they do: the death signal follows the *thread* (prctl(2)).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType
from typing import IO

from .process import Completed, Process

TESTS = Path(__file__).resolve().parents[1]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TMPFS = ("/run", "/tmp", "/srv", "/var/lib/tidegate")
LOGS = "/run/lab/log"
# Seen inside at their own paths: this checkout and the interpreter, wherever they are mounted.
READ_ONLY = tuple(dict.fromkeys((str(TESTS.parent), sys.prefix, sys.base_prefix)))
INTERPRETER_ALREADY_THERE = ("/usr",)
INIT = Path(__file__).with_name("init.py")
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc", "--propagation", "private")
HOLD = ("setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child=KILL")


class Host:
    """One machine of the lab. Use it as a context manager, or let `Lab` do it."""

    def __init__(self, name: str):
        self.name = name
        self.interfaces: tuple[IPv4Interface | IPv6Interface, ...] = ()
        self._env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        self._logs = 0
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        spec = {
            "name": name,
            "tmpfs": TMPFS,
            "read_only": [path for path in READ_ONLY if path not in INTERPRETER_ALREADY_THERE],
        }
        with tempfile.TemporaryFile() as complaints, theirs:
            # A session of its own: Ctrl-C is pytest's to handle, the host goes when pytest does.
            self._holder = subprocess.Popen(
                [*HOLD, sys.executable, "-S", str(INIT), str(theirs.fileno()), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                env=self._env,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            self._control.settimeout(20)
            ready, ancillary, _, _ = self._control.recvmsg(64, socket.CMSG_SPACE(12))
            if ready != b"ready":
                self.close()
                complaints.seek(0)
                raise RuntimeError(f"host {name} did not start: {complaints.read().decode(errors='replace')}")
        self._control.settimeout(None)
        # The kernel tells the sender's pid as seen from here.
        self.init_pid: int = struct.unpack("3i", ancillary[0][2])[0]
        self.path(LOGS).mkdir(parents=True)

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def close(self) -> None:
        """End every process of the host, and with them its namespaces and mounts. Idempotent."""
        self._control.close()
        self._holder.wait(20)

    # Files

    def path(self, inside: str) -> Path:
        """Where a file of the host is seen from outside.

        Absolute symbolic links on the way lead astray, and what the kernel makes up for whoever opens it is
        theirs (/proc/self, /proc/net, /proc/sys/net): refused here, read or write that with `run`.
        """
        if inside.startswith(("/proc/self", "/proc/thread-self", "/proc/net", "/proc/sys")):
            raise ValueError(f"{inside} would be this machine's, not {self.name}'s: use run()")
        return Path(f"/proc/{self.init_pid}/root", inside.lstrip("/"))

    def write(self, inside: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Put a file in place, with its folders; a link there is replaced, not followed."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def remove(self, inside: str) -> None:
        """Take a folder away, with what is in it; one that is not there is none."""
        shutil.rmtree(self.path(inside), ignore_errors=True)

    def changed_files(self) -> dict[str, tuple[int, int]]:
        """Every file that differs from the machine's (tmpfs folders aside): path -> (mode, mtime in ns).

        Compare two calls to learn what was touched in between.
        """
        upper = self.path("/run/lab/upper")
        return {
            "/" + str(path.relative_to(upper)): (path.lstat().st_mode, path.lstat().st_mtime_ns)
            for path in upper.rglob("*")
        }

    def logs(self) -> dict[str, str]:
        """What every process started by `spawn` wrote: name -> text. Nothing is left of a closed host's."""
        if self._holder.poll() is not None:
            return {}
        return {path.name: path.read_text(errors="replace") for path in sorted(self.path(LOGS).iterdir())}

    # Connections

    def connect(self, address: object, port: int, *, timeout_s: float = 10) -> socket.socket:
        """A TCP connection from this host to there, held by the caller: no process of the host has it."""
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        here, init = Path("/proc/thread-self/ns/net"), Path(f"/proc/{self.init_pid}/ns/net")
        with here.open() as before, init.open() as there:
            _enter(there)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)  # which stays where it was made
            finally:
                _enter(before)
        sock.settimeout(timeout_s)
        sock.connect((str(address), port))
        return sock

    def exchange(self, inside: str, line: bytes, *, timeout_s: float = 10) -> bytes:
        """Send a line to a Unix socket of the host, and what comes back first."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(self.path(inside)))
            sock.sendall(line)
            return sock.recv(65536)

    # Processes

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] = {},
        stdin: bytes = b"",
        timeout_s: float = 60,
        cwd: str = "/",
    ) -> Completed:
        """Run a command to its end under a clean environment. A time-out kills it and raises TimeoutError."""
        with ExitStack() as files:
            given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            with self._start(argv, env, cwd, given, out, err, None) as process:
                try:
                    code = process.wait(timeout_s)
                except TimeoutError as error:
                    raise TimeoutError(f"{error}\n{_text(out)}{_text(err)}") from None
                return Completed(
                    argv=tuple(argv),
                    exit_code=code,
                    stdout=_text(out),
                    stderr=_text(err),
                    duration_s=process.duration_s,
                )

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] = {},
        log: str = "",
        cwd: str = "/",
    ) -> Process:
        """Start a process; its output goes to a log of the host named `log` (default: the command's name)."""
        self._logs += 1
        path = self.path(f"{LOGS}/{self._logs:03}-{log or Path(argv[0]).name}.log")
        with path.open("ab") as out, Path(os.devnull).open("rb") as nothing:
            return self._start(argv, env, cwd, nothing, out, out, path)

    def python(self, source: str, *arguments: str, timeout_s: float = 60) -> Completed:
        """Run Python source with this interpreter and packages on the host; the rest is `sys.argv[1:]`."""
        return self.run([sys.executable, "-c", source, *arguments], env=PYTHON_ENV, timeout_s=timeout_s)

    def process(self, pid: int) -> Process:
        """A running process of the host by its pid inside. ProcessLookupError when there is none."""
        answer, pidfd, reply = self._ask({"pidfd": pid}, [])
        reply.close()
        if "error" in answer:
            raise ProcessLookupError(f"{self.name} has no process {pid}: {answer['error']}")
        return Process((f"pid {pid}",), pid, pidfd, None, None)

    def processes(self) -> dict[int, str]:
        """Pid (inside) -> command line of everything that runs on the host, init and kernel threads aside."""
        found = {}
        for entry in self.path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != "1":
                try:
                    line = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    )
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if line:
                    found[int(entry.name)] = line
        return found

    def listening(self) -> set[int]:
        """The TCP ports that something on the host listens on."""
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.init_pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":  # TCP_LISTEN
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports

    def _start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
        log: Path | None,
    ) -> Process:
        request = {"spawn": {"argv": list(argv), "env": {**self._env, **env}, "cwd": cwd}}
        answer, pidfd, reply = self._ask(request, [stdin.fileno(), stdout.fileno(), stderr.fileno()])
        return Process(argv, int(str(answer["pid"])), pidfd, reply, log)

    def _ask(
        self, request: Mapping[str, object], fds: list[int]
    ) -> tuple[dict[str, object], int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno(), *fds])
        ours.settimeout(20)
        data, received, _, _ = socket.recv_fds(ours, 4096, 1)
        if not data:
            raise ConnectionError(f"host {self.name} is gone")
        ours.settimeout(None)
        return json.loads(data), received[0] if received else -1, ours


PYTHON_ENV = {"PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def _enter(namespace: IO[str]) -> None:
    """setns(2), which Python has from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the namespace")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
