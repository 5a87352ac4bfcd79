"""Answers that nobody has to be waited for: read the head, ask the service, render, count.

What one request needs and the next alike needs again is remembered by the exact bytes of its head and the
site of its connection: what they mean, what the crash journal calls it, what is counted. Whether there is an
answer is never remembered; the service is asked each time. A head that carries a credential is not remembered
either. This module does not know connections.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Protocol

from tidegate_proxy.http.addressing import Addressed, Addressing
from tidegate_proxy.http.crash_journal import CrashJournal, name_of
from tidegate_proxy.http.plain_head import PlainHead, parse_plain_head
from tidegate_proxy.http.served import Served, Tally
from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site

LIMIT_BYTES = 2 * 1024 * 1024
_BESIDES_BYTES = 1024  # of an entry, whatever the length of its head
_COPIES = 4  # of a head, about: as the key, and what is taken from it


class Ready(Protocol):
    """Registry semantics, as far as they need no waiting."""

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None: ...


@dataclass(slots=True, kw_only=True)
class _Known:
    """A request, and what its last answer counted as: `served` is true of the ready answer `edition`.

    The answer itself is not kept: whoever holds manifests must be able to let them go.
    """

    site: Site
    target: str
    head: PlainHead
    name: bytes
    edition: int = -1
    served: Served | None = None


class AtHand:
    """Answers plain heads, for all connections of a server."""

    def __init__(
        self, *, service: Ready, journal: CrashJournal, tally: Tally, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._service = service
        self._journal = journal
        self._tally = tally
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._known: dict[tuple[Hashable, bytes], _Known] = {}
        self._date = b""
        self._date_of = 0

    def __len__(self) -> int:
        """How many requests are remembered."""
        return len(self._known)

    def answer(self, addressing: Addressing, data: bytes) -> tuple[bytes, bool] | None:
        """The wire form, and whether the connection ends with it; None: this takes the full server."""
        where = addressing.where
        known = self._known.get((where, data)) or self._read(addressing, data)
        if known is None:
            return None
        if self._journal.crashed_twice(known.name):
            return None
        head = known.head
        started = time.monotonic()
        slot = self._journal.enter(known.name)
        try:
            ready = self._service.at_hand(known.site, head.method, known.target)
            if ready is None:
                return None
            wire = self._rendered(ready, head)
        finally:
            self._journal.leave(slot)
        served = known.served
        if served is None or known.edition != ready.edition:
            if served is None and head.open:
                self._remember(where, data, known)
            known.served = served = _served(known, ready)
            known.edition = ready.edition
        self._tally.add(served, time.monotonic() - started)
        return wire, head.closes

    def _read(self, addressing: Addressing, data: bytes) -> _Known | None:
        head = parse_plain_head(data)
        addressed = addressing.of(head.host, head.target) if head is not None else None
        if head is None or not isinstance(addressed, Addressed):
            return None
        site, target = addressed.site, addressed.target
        return _Known(site=site, target=target, head=head, name=name_of(head.method, site.host, target))

    def _remember(self, where: Hashable, data: bytes, known: _Known) -> None:
        """First in, first out: one that is still wanted comes back for the price of reading it once."""
        self._known[(where, data)] = known
        self._held_bytes += _held_bytes(data)
        while self._held_bytes > self._limit_bytes:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._held_bytes -= _held_bytes(oldest[1])

    def _rendered(self, ready: ReadyAnswer, head: PlainHead) -> bytes:
        """Status line, header fields and, for a GET, the body."""
        if ready.wire is None:
            ready.wire = _constant_part(ready.answer)
        end = b"Connection: close\r\n\r\n" if head.closes else b"\r\n"
        return b"".join((ready.wire, self._date_line(), end, ready.body if head.method == "GET" else b""))

    def _date_line(self) -> bytes:
        now = int(time.time())
        if now != self._date_of:
            self._date_of = now
            self._date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._date


def _held_bytes(head: bytes) -> int:
    return _BESIDES_BYTES + _COPIES * len(head)


def _constant_part(answer: Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} OK",
        *(f"{name}: {value}" for name, value in answer.labelled().items()),
    ]
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


def _served(known: _Known, ready: ReadyAnswer) -> Served:
    return Served(
        site=known.site,
        method=known.head.method,
        path=known.target.partition("?")[0],
        status=ready.answer.status,
        cache=ready.answer.cache,
        kind=ready.answer.kind,
        sent_bytes=len(ready.body) if known.head.method == "GET" else 0,
        received_bytes=0,
        cause=None,
    )
