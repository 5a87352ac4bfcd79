"""Which requests were being handled when the process died, and which of them have seen two deaths (I1).

Each request writes its name into a slot of a memory-mapped file before it is handled and empties the slot
afterwards; the kernel keeps such pages however the process ends. The next process reads what is left. A
request that was in flight at two deaths within `MEMORY_S` is not to be handled again for as long: whoever
asks `crashed_twice` passes it through untouched. An orderly end removes the file, so it blames nobody.

A slot costs about a microsecond a request. Names hold method, host and path, never a query or a header.
Fails open: a journal that cannot be kept, or is full, names nothing. It does not find out which of several
requests in flight was to blame: all of them bypass the cache, which harms none.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

MEMORY_S = 3600.0
DEATHS = 2
_SLOTS = 1024
_SLOT_BYTES = 256  # a length, and so many bytes of a name
_LENGTHS: Final = tuple(bytes((length,)) for length in range(_SLOT_BYTES))
_NO_SLOT = -1

Deaths = Mapping[bytes, Sequence[float]]


class CrashedTwice(Exception):
    """Why a request was passed through: the agent died twice while it was handling this one."""

    def __init__(self) -> None:
        super().__init__("the agent died twice while it was handling this request")


def name_of(method: str, host: str, target: str) -> bytes:
    """What a request is called in the journal; a name too long for a slot is told by its hash."""
    path = target.partition("?")[0]
    name = f"{method} {host} {path}".encode("utf-8", "surrogateescape")
    return name if len(name) < _SLOT_BYTES else b"blake2b " + blake2b(name).hexdigest().encode()


class CrashJournal:
    """The slots of this process, and what the deaths before it say. Used from one thread."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Names nothing until it is opened.

        `clock` has to go on from process to process and may restart with the machine: time.monotonic.
        """
        self._in_flight, self._deaths = directory / "in-flight", directory / "deaths.json"
        self._clock = clock
        self._bypassed_until: dict[bytes, float] = {}
        self._table: mmap.mmap | None = None
        self._free: list[int] = []

    def open(self) -> None:
        """Learn from the process before, and start anew; raises OSError when nothing can be kept."""
        deaths = _with_this_death(_remembered(self._deaths), _left_by(self._in_flight), now=self._clock())
        self._bypassed_until = {
            name: moments[-1] + MEMORY_S for name, moments in deaths.items() if len(moments) >= DEATHS
        }
        _remember(self._deaths, deaths)
        self._table = _new_table(self._in_flight)
        # The last is taken first and given back last: an idle agent touches one page.
        self._free = list(range((_SLOTS - 1) * _SLOT_BYTES, -1, -_SLOT_BYTES))

    @property
    def bypassed(self) -> tuple[str, ...]:
        """The requests that are passed through now."""
        names = [name for name in tuple(self._bypassed_until) if self.crashed_twice(name)]
        return tuple(name.decode(errors="replace") for name in names)

    def crashed_twice(self, name: bytes) -> bool:
        """Whether to keep our hands off this request."""
        if not self._bypassed_until:
            return False
        until = self._bypassed_until.get(name)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._bypassed_until[name]
        return False

    def enter(self, name: bytes) -> int:
        """Say that this request is being handled; what `leave` wants to have. Never raises."""
        if not self._free or self._table is None:
            return _NO_SLOT
        slot = self._free.pop()
        self._table[slot : slot + 1 + len(name)] = _LENGTHS[len(name)] + name
        return slot

    def leave(self, slot: int) -> None:
        """Say that it has been handled, well or badly."""
        if slot != _NO_SLOT and self._table is not None:
            self._table[slot] = 0
            self._free.append(slot)

    def close(self) -> None:
        """From here on the end is an orderly one: forget everything. Idempotent."""
        if self._table is None:
            return
        self._table.close()
        self._table = None
        for file in (self._in_flight, self._deaths):
            with contextlib.suppress(OSError):
                file.unlink()


def _new_table(path: Path) -> mmap.mmap:
    """An empty table, its room reserved: a page that a full file system could not give would kill us."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _SLOTS * _SLOT_BYTES)
        return mmap.mmap(descriptor, _SLOTS * _SLOT_BYTES)
    finally:
        os.close(descriptor)


def _left_by(path: Path) -> Iterator[bytes]:
    """The names in the table of a process that died; none when it ended in order."""
    try:
        table = path.read_bytes()
    except FileNotFoundError:
        return
    for slot in range(0, len(table), _SLOT_BYTES):
        if length := table[slot]:
            yield table[slot + 1 : slot + 1 + length]


def _with_this_death(before: Deaths, in_flight: Iterator[bytes], *, now: float) -> Deaths:
    """The deaths of each request that still count; those later than now were before a reboot."""
    deaths = {
        name: recent
        for name, moments in before.items()
        if (recent := [moment for moment in moments if 0 <= now - moment < MEMORY_S])
    }
    for name in set(in_flight):
        deaths[name] = [*deaths.get(name, ()), now][-DEATHS:]
    newest = sorted(deaths, key=lambda name: deaths[name][-1], reverse=True)
    return {name: deaths[name] for name in newest[:_SLOTS]}


def _remembered(path: Path) -> Deaths:
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=dict[str, list[float]])
        return {name.encode("latin-1"): moments for name, moments in entries.items() if moments}
    except (FileNotFoundError, msgspec.DecodeError, UnicodeError):
        return {}


def _remember(path: Path, deaths: Deaths) -> None:
    """Replaced as a whole. Not synced: what matters survives a process's death, not the machine's."""
    if not deaths:
        path.unlink(missing_ok=True)
        return
    # Latin-1 takes every byte there and back, whatever a client called a path.
    entries = {name.decode("latin-1"): list(moments) for name, moments in deaths.items()}
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(entries))
    new.replace(path)
