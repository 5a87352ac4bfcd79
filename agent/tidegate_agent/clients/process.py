"""What is known of a process without a ptrace right: `/proc/PID/stat` and its mount table (proc(5)).

`/proc/PID/exe`, `root`, `ns` and `fd` would need that right. Start times are in clock ticks since boot and
identify a process together with its pid; exec keeps both and changes the name.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tidegate_agent.clients.mounts import File, file_at, parse_mounts

_TICKS = os.sysconf("SC_CLK_TCK")
_STARTTIME = 19  # field 22 of stat(5), counted from the one after the name
_KEPT = 1024
_HELD = 32  # each takes a descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """`started_ticks` are since boot; `sees_store`: the system's trust store is the one it would read."""

    pid: int
    started_ticks: int
    name: str
    sees_store: bool

    @property
    def started(self) -> float:
        """Seconds since the epoch, by the clock as it is set now."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + self.started_ticks / _TICKS


def parse_stat(data: bytes) -> tuple[str, int]:
    """A process's name and start time in ticks; raises ValueError. The name may hold anything, `)` too."""
    head, _, tail = data.rpartition(b")")
    name = head.partition(b"(")[2]
    fields = tail.split()
    if len(fields) <= _STARTTIME:
        raise ValueError(f"not a stat line: {data!r}")
    return name.decode(errors="replace"), int(fields[_STARTTIME])


@dataclass(frozen=True, slots=True)
class _Held:
    """A process whose `/proc/PID/comm` is held open, and what that said when the process was read.

    The open file belongs to the process and not to its number: it cannot be read any more once the process
    has ended, whoever has the number then. That it says the same means that everything is still true.
    """

    process: Process
    comm: int
    said: bytes


class Processes:
    """Reads `/proc`. A process's view of the trust store is looked at once for each program that it runs."""

    def __init__(self, *, bundle: Path | None, proc: Path = Path("/proc")) -> None:
        """`bundle` is the trust store's file as this process sees it; None: every process sees it."""
        self._proc = str(proc)
        self._bundle = bundle
        # The agent's own unit may give it mounts of its own; process 1 has the host's, unless it is hidden.
        self._host = "1" if os.access(f"{proc}/1/mountinfo", os.R_OK) else "self"
        self._views: OrderedDict[tuple[int, int, str], bool] = OrderedDict()
        self._held: OrderedDict[int, _Held] = OrderedDict()

    def close(self) -> None:
        """Let go of the processes that are held."""
        while self._held:
            self._let_go(next(iter(self._held)))

    def read(self, pid: int) -> Process | None:
        """The process, None when it is gone or hidden."""
        try:
            name, started = parse_stat(_read(f"{self._proc}/{pid}/stat", 1024))
            identity = (pid, started, name)
            sees_store = self._views.get(identity)
            if sees_store is None:
                sees_store = self._sees_store(pid)
                self._views[identity] = sees_store
                if len(self._views) > _KEPT:
                    self._views.popitem(last=False)
        except (OSError, ValueError):
            return None
        return Process(pid=pid, started_ticks=started, name=name, sees_store=sees_store)

    def reread(self, pid: int) -> Process | None:
        """As `read`, for a few processes that are asked for again and again: by one system call."""
        held = self._held.get(pid)
        if held is not None:
            if _says(held.comm) == held.said:
                return held.process
            self._let_go(pid)
        try:
            comm = os.open(f"{self._proc}/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self.read(pid)  # no descriptors, say
        process = self.read(pid)
        # Asked after the process was read: it has the number still, so it is the one that was read.
        said = _says(comm)
        if process is None or said.removesuffix(b"\n").decode(errors="replace") != process.name:
            os.close(comm)
            return process
        self._held[pid] = _Held(process, comm, said)
        if len(self._held) > _HELD:
            self._let_go(next(iter(self._held)))
        return process

    def pids(self) -> list[int]:
        """Every process that can be seen, the newest first (unless pids have wrapped around)."""
        return sorted((int(entry) for entry in os.listdir(self._proc) if entry.isdigit()), reverse=True)  # noqa: PTH208 - hot

    def named(self, names: Container[str]) -> Iterator[Process]:
        """The processes with one of these names, the oldest first."""
        for pid in reversed(self.pids()):
            try:
                name, _ = parse_stat(_read(f"{self._proc}/{pid}/stat", 1024))
            except (OSError, ValueError):
                continue
            if name in names and (process := self.read(pid)) is not None:
                yield process

    def on_this_network(self, pid: int) -> bool:
        """Whether a process is in our network namespace; files below `/proc/PID/net` exist once for each."""
        try:
            ours = os.stat(f"{self._proc}/self/net/tcp").st_ino  # noqa: PTH116 - hot
            return os.stat(f"{self._proc}/{pid}/net/tcp").st_ino == ours  # noqa: PTH116
        except OSError:
            return False

    def exe(self, pid: int) -> str:
        """The path of its program, or "" without the right to know."""
        try:
            return os.readlink(f"{self._proc}/{pid}/exe")  # noqa: PTH115 - as pids() and stat
        except OSError:
            return ""

    def service(self, pid: int) -> str:
        """The systemd service that it belongs to, without `.service`; "" for none."""
        try:
            text = _read(f"{self._proc}/{pid}/cgroup", 8192).decode(errors="replace")
        except OSError:
            return ""
        return service_of(text)

    def _let_go(self, pid: int) -> None:
        os.close(self._held.pop(pid).comm)

    def _sees_store(self, pid: int) -> bool:
        if self._bundle is None:
            return True
        theirs, hosts = (_MountTable(f"{self._proc}/{of}/mountinfo") for of in (pid, self._host))
        # Mounts are numbered for the whole kernel: with the first of them all are the same.
        if theirs.readline() == hosts.readline():
            return True
        paths = {PurePosixPath(self._bundle), PurePosixPath(self._bundle.resolve())}
        return theirs.files(paths) == hosts.files(paths)


@dataclass(slots=True)
class _MountTable:
    """Read no further than needed: on a node of Kubernetes it has thousands of lines."""

    path: str

    def readline(self) -> bytes:
        return _read(self.path, 512).partition(b"\n")[0]

    def files(self, paths: set[PurePosixPath]) -> list[File | None]:
        mounts = parse_mounts(Path(self.path).read_text(errors="surrogateescape"))
        return [file_at(mounts, path) for path in sorted(paths)]


def service_of(cgroup: str) -> str:
    """The innermost systemd service in the text of a `/proc/PID/cgroup`, without `.service` (cgroups(7))."""
    for line in cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" or controllers == "name=systemd":
            for part in reversed(path.split("/")):
                if part.endswith(".service"):
                    return part.removesuffix(".service")
    return ""


def _says(comm: int) -> bytes:
    try:
        return os.pread(comm, 64, 0)
    except OSError:  # ESRCH: it has ended
        return b""


def _read(path: str, size: int) -> bytes:
    # Half the time of Path.read_bytes, and this is done for every connection.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)
