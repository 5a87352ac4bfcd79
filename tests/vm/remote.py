"""A host of the lab that is reached through ssh: a virtual machine, with the lab's own way to use hosts.

ssh runs on another host (`via`), which has a network to this one. One connection is kept for all commands
(ssh_config(5), ControlMaster): under emulation a new one costs two seconds, a command on it a tenth.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import CommandFailed, Completed, Host, Process, until
from lab.network import Interface

from .remote_path import paths_on

KEY = "/run/lab/key"  # on `via`
NO_CONNECTION = 255  # ssh(1), EXIT STATUS: an error occurred
OPTIONS = (
    *("-F", "none"),
    *("-o", "BatchMode=yes"),
    *("-o", "LogLevel=ERROR"),
    *("-o", "StrictHostKeyChecking=no"),  # the machine was made a minute ago, on this one
    *("-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "ConnectTimeout=20"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ControlMaster=auto"),
    *("-o", "ControlPersist=yes"),
    *("-i", KEY),
)
_numbers = itertools.count(1)


class RemoteHost(Host):
    """A machine with sshd and the lab's key. It is someone else's to start and end."""

    def __init__(self, name: str, interfaces: Sequence[Interface], via: Host):
        # Not Host's: there are no namespaces to open.
        self.name = name
        self.interfaces = tuple(interfaces)
        self.address = interfaces[0].ip
        self._via = via
        self._env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self._paths = paths_on(name, self._execute)
        self._spawned: dict[str, Path] = {}

    def close(self) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """End the kept connection: what is behind it restarted, or went back in time."""
        self._via.run(["ssh", *self._options, "-O", "exit", "root@" + str(self.address)])
        with contextlib.suppress(FileNotFoundError):
            self._via.path(self._socket).unlink()

    @property
    def answers(self) -> bool:
        """Whether a command can be run there now."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            return self.run(["true"], timeout_s=60).ok
        return False

    def wait_restarted(self, boot_id: str, within_s: float) -> None:
        """Wait until the machine answers from another boot than that of this id."""

        def restarted() -> bool:
            with contextlib.suppress(ConnectionError, TimeoutError, CommandFailed):
                return self.path("/proc/sys/kernel/random/boot_id").read_text() != boot_id
            self.hang_up()
            return False

        until(restarted, f"{self.name} is up again", within_s=within_s, every_s=1)

    def set_clock(self) -> None:
        """To this machine's time: after a snapshot it has that of the snapshot."""
        self.run(["date", "--set", f"@{time.time():.1f}"]).or_raise()

    # Files

    def path(self, inside: str) -> Path:
        return self._paths(inside)

    def write(self, inside: str, content: str | bytes, *, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        name = shlex.quote(inside)
        self._execute(
            f'mkdir -p "$(dirname {name})" && rm -f {name} && cat > {name} && chmod {mode:o} {name}', data
        )

    def remove(self, inside: str) -> None:
        self._execute(f"rm -rf {shlex.quote(inside)}", b"")

    def changed_files(self) -> dict[str, tuple[int, int]]:
        raise NotImplementedError(f"{self.name} has no layer of its own; compare two listings")

    def logs(self) -> dict[str, str]:
        """What was spawned from here, and the machine's journal of this boot."""
        found = {name: path.read_text(errors="replace") for name, path in self._spawned.items()}
        with contextlib.suppress(ConnectionError, TimeoutError):
            found["journal"] = self.run(["journalctl", "--boot", "--no-pager", "--lines", "400"]).stdout
        return found

    # Connections

    def connect(self, address: object, port: int, *, timeout_s: float = 10) -> socket.socket:
        raise NotImplementedError(f"{self.name} has a kernel of its own: no socket of it can be held here")

    def exchange(self, inside: str, line: bytes, *, timeout_s: float = 10) -> bytes:
        source = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(float(sys.argv[2]));"
            "s.connect(sys.argv[1]); s.sendall(sys.stdin.buffer.read());"
            "sys.stdout.buffer.write(s.recv(65536))"
        )
        return self._execute(shlex.join(["python3", "-c", source, inside, str(timeout_s)]), line)

    # Processes

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] = {},
        stdin: bytes = b"",
        timeout_s: float = 180,
        cwd: str = "/",
    ) -> Completed:
        done = self._via.run(self._ssh(self._command(argv, env, cwd)), stdin=stdin, timeout_s=timeout_s + 5)
        if done.exit_code == NO_CONNECTION:
            raise ConnectionError(f"{self.name} is not reached: {done.stderr.strip()}")
        return Completed(
            argv=tuple(argv),
            exit_code=done.exit_code,
            stdout=done.stdout,
            stderr=done.stderr,
            duration_s=done.duration_s,
        )

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] = {}, log: str = "", cwd: str = "/"
    ) -> Process:
        pid_file = f"/run/lab-pid-{next(_numbers)}"
        local = self._via.spawn(
            self._ssh(f"echo $$ > {pid_file}; exec {self._command(argv, env, cwd)}"),
            log=f"{self.name}-{log or Path(argv[0]).name}",
        )
        assert local.log_path is not None
        self._spawned[local.log_path.name] = local.log_path
        return _Remote(local, self, argv, pid_file)

    def process(self, pid: int) -> Process:
        raise NotImplementedError(f"processes of {self.name} are signalled with kill(1)")

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process by its number over there; one that is gone is none."""
        self.run(["kill", f"-{number.value}", str(pid)])

    def processes(self) -> dict[int, str]:
        """Pid -> command line of everything but the kernel's own."""
        listed = self.run(["ps", "-eo", "pid=,args="]).or_raise().stdout
        split = (line.split(maxsplit=1) for line in listed.splitlines())
        return {int(pid): line for pid, line in split if not line.startswith("[")}

    def listening(self) -> set[int]:
        listed = self.run(["ss", "-Hltn"]).or_raise().stdout
        return {int(line.split()[3].rpartition(":")[2]) for line in listed.splitlines()}

    def _command(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> str:
        variables = [f"{name}={value}" for name, value in {**self._env, **env}.items()]
        return shlex.join(["env", "-i", "-C", cwd, *variables, *argv])

    def _execute(self, source: str, stdin: bytes) -> bytes:
        # Through files, as these are bytes and Host.run decodes.
        number = next(_numbers)
        given, out = (f"/run/lab/{self.name}-{number}.{end}" for end in ("in", "out"))
        self._via.write(given, stdin)
        try:
            done = self._via.run(["sh", "-c", f'exec "$@" < {given} > {out}', "sh", *self._ssh(source)])
            if done.exit_code == NO_CONNECTION:
                raise ConnectionError(f"{self.name} is not reached: {done.stderr.strip()}")
            if not done.ok:
                raise CommandFailed(f"{self.name}: {source}: exit {done.exit_code}\n{done.stderr}")
            return self._via.path(out).read_bytes()
        finally:
            for path in (given, out):
                self._via.path(path).unlink(missing_ok=True)

    @property
    def _socket(self) -> str:
        return f"/run/lab/ssh-{self.name}"

    @property
    def _options(self) -> tuple[str, ...]:
        return (*OPTIONS, "-o", f"ControlPath={self._socket}")

    def _ssh(self, command: str) -> list[str]:
        return ["ssh", *self._options, f"root@{self.address}", command]


class _Remote(Process):
    """A process over there: this side's ssh is what is waited for, signals go to the process itself."""

    def __init__(self, local: Process, host: RemoteHost, argv: Sequence[str], pid_file: str):
        # The ssh process is this one's from now on, pidfd, log and exit status.
        super().__init__(argv, local.pid, local._pidfd, local._reply, local.log_path)
        self._host = host
        self._pid_file = pid_file

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.running:
            with contextlib.suppress(ConnectionError):
                self._host.run(["sh", "-c", f"kill -{number.value} $(cat {self._pid_file})"])
