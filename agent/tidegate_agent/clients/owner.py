"""Which process holds a socket: through `/proc/PID/fd`, where this process may read that.

Reading another user's `fd`, or that of a process with more capabilities, needs CAP_SYS_PTRACE. Without it
the socket's cgroup and user narrow the answer to a group of processes in this network namespace
(docs/decisions/0010-who-connects.md). Searches are bounded; what is not found within the bounds is unknown.
"""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidegate_agent.clients.cgroup import Cgroups
from tidegate_agent.clients.process import Processes
from tidegate_agent.clients.sock_diag import SocketFacts

_LOOKED_AT_PROCESSES = 1024
_LOOKED_AT_LINKS = 8192
_REMEMBERED = 512
_PASSED = 16384
_HINTS = 16
_HINTS_TRIED = 8
_GROUP_PROCESSES = 512
_GROUP_KEPT_S = 1.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The processes that may hold a socket; `certain`: it is this one. No pids: it is not known."""

    pids: tuple[int, ...]
    certain: bool


UNKNOWN = Owner((), certain=False)


@dataclass(slots=True)
class _Search:
    """One search: what of its bounds is left, and who could not be looked into."""

    link: str
    links_left: int = _LOOKED_AT_LINKS
    opened: int = 0
    closed: list[int] = field(default_factory=list)


class Owners:
    """Looks first where sockets of the same user in the same cgroup were found.

    A descriptor that is closed is given to the next socket, and the oldest connection is likely to have ended
    first, so the descriptor that was seen in use longest ago is looked at first. Most clients are new
    processes, and most processes on a host are neither: a search seldom opens more than one of them.
    """

    def __init__(
        self,
        cgroups: Cgroups,
        processes: Processes,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cgroups = cgroups
        self._processes = processes
        self._proc = str(proc)
        self._clock = clock
        self._ours = (os.getpid(), os.getppid())  # these can be looked into without any right
        self._hints: OrderedDict[tuple[int, int], deque[tuple[int, str]]] = OrderedDict()
        self._passed: set[int] = set()
        self._groups: OrderedDict[tuple[int, int], tuple[float, Owner]] = OrderedDict()

    def of(self, found: SocketFacts) -> Owner:
        """Who holds the socket."""
        if not found.inode:  # closed by its owner: only the kernel still knows it
            return UNKNOWN
        key = (found.cgroup_id, found.uid)
        link = f"socket:[{found.inode}]"
        known: Mapping[int, None] = {}
        if hints := self._hints.get(key):
            known = dict.fromkeys(pid for pid, _ in hints)
            if pid := self._hinted(hints, link):
                return Owner((pid,), certain=True)
        group = self._groups.get(key)
        if group is not None and self._clock() < group[0]:
            return group[1]
        search = _Search(link)
        for pid in self._candidates(found.cgroup_id, known):
            descriptor = self._descriptor(pid, search)
            if descriptor:
                self._remember(key, pid, descriptor)
                return Owner((pid,), certain=True)
            if search.links_left <= 0:
                return UNKNOWN
        return self._group(key, found.uid, search)

    def _hinted(self, hints: deque[tuple[int, str]], link: str) -> int:
        """The process that holds the socket where one was seen before, 0 when none of those does."""
        tried = 0
        while tried < min(len(hints), _HINTS_TRIED):
            pid, descriptor = hints[tried]
            now = self._link(pid, descriptor)
            if now == link:
                del hints[tried]
                hints.append((pid, descriptor))
                return pid
            if now:
                tried += 1
            else:
                del hints[tried]
        hints.rotate(-tried)  # or connections that last would hide the others
        return 0

    def _candidates(self, cgroup_id: int, known: Mapping[int, None]) -> Iterable[int]:
        """Who had such a socket before; then who is new since the last search; then everybody else."""
        yield from known
        listed = self._cgroups.pids(cgroup_id)
        if listed is None:
            listed = self._processes.pids()
            self._passed.intersection_update(listed)
        if len(self._passed) > _PASSED:
            self._passed.clear()
        fresh = [pid for pid in listed if pid not in self._passed and pid not in known]
        passed = [pid for pid in listed if pid in self._passed and pid not in known]
        for pid in (*fresh, *passed)[:_LOOKED_AT_PROCESSES]:
            yield pid
            self._passed.add(pid)  # not reached for the one that was found

    def _descriptor(self, pid: int, search: _Search) -> str:
        """The descriptor by which a process holds the socket, "" when it does not."""
        descriptors: list[str] = []
        try:
            # CAP_DAC_OVERRIDE is enough to list them, but not to read a link.
            descriptors = os.listdir(f"{self._proc}/{pid}/fd")  # noqa: PTH208 - hot
            if descriptors:
                os.readlink(f"{self._proc}/{pid}/fd/{descriptors[0]}")  # noqa: PTH115 - hot
        except PermissionError:
            search.closed.append(pid)
            return ""
        except OSError:  # the process is gone (then there are none), or only its first descriptor
            pass
        search.links_left -= len(descriptors)
        search.opened += pid not in self._ours
        return next((each for each in reversed(descriptors) if self._link(pid, each) == search.link), "")

    def _link(self, pid: int, descriptor: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{pid}/fd/{descriptor}")  # noqa: PTH115 - hot
        except OSError:
            return ""

    def _remember(self, key: tuple[int, int], pid: int, descriptor: str) -> None:
        hints = self._hints.setdefault(key, deque(maxlen=_HINTS))
        if (pid, descriptor) in hints:
            hints.remove((pid, descriptor))
        hints.append((pid, descriptor))
        self._hints.move_to_end(key)
        if len(self._hints) > _REMEMBERED:
            self._hints.popitem(last=False)

    def _group(self, key: tuple[int, int], uid: int, search: _Search) -> Owner:
        pids = [
            pid for pid in search.closed if self._may_own(pid, uid) and self._processes.on_this_network(pid)
        ]
        owner = Owner(tuple(pids), certain=False) if len(pids) <= _GROUP_PROCESSES else UNKNOWN
        if search.opened:  # the next socket may belong to one that can be looked into
            return owner
        self._groups[key] = (self._clock() + _GROUP_KEPT_S, owner)
        self._groups.move_to_end(key)
        if len(self._groups) > _REMEMBERED:
            self._groups.popitem(last=False)
        return owner

    def _may_own(self, pid: int, uid: int) -> bool:
        try:
            # Root owns the files of a process that may not be dumped, whoever runs it.
            return os.stat(f"{self._proc}/{pid}").st_uid in (uid, 0)  # noqa: PTH116 - hot
        except OSError:
            return False
