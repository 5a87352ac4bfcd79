"""Requests that can be answered at once are; everything else goes to the full HTTP server, byte for byte.

Clients open a connection for nearly every request, and most requests are for a manifest that is in memory.
Such a request is one plain head without a body (RFC 9112): it is read here, strictly, and whatever is not
exactly that, or has no answer at hand, makes the full server take the connection over with the bytes that
came, for good. This module decides nothing about content and waits for nothing.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import cast

from tidegate_proxy.answer import Answer
from tidegate_proxy.hot_manifests import ReadyAnswer

MAX_HEAD_BYTES = 16 * 1024
_METHODS = frozenset({b"GET", b"HEAD"})
# A body, or a head that wants more than a plain answer: for the full server.
_NOT_PLAIN = frozenset(
    {b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"range", b"if-none-match", b"if-match"}
)
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A request without a body; `closes` when the client wants the connection closed after the answer."""

    method: str
    target: str
    host: str
    closes: bool


def parse_plain_head(data: bytes) -> PlainHead | None:
    """The request, when `data` is exactly one plain head; None for everything else, malformed or not."""
    if len(data) > MAX_HEAD_BYTES or not data.endswith(b"\r\n\r\n") or not data.isascii() or b"\0" in data:
        return None
    lines = data[:-4].split(b"\r\n")
    if data.count(b"\n") != len(lines) + 1 or data.count(b"\r") != len(lines) + 1:
        return None  # a line end of another kind
    words = lines[0].split(b" ")
    if len(words) != 3 or words[0] not in _METHODS or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return None
    host, connection = None, b""
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or not _TOKEN.issuperset(name) or name in _NOT_PLAIN:
            return None
        if name == b"host":
            if host is not None:
                return None
            host = value.strip()
        elif name == b"connection":
            connection = value.strip().lower()
    if host is None or connection not in (b"", b"close", b"keep-alive"):
        return None
    if words[2] == b"HTTP/1.0" and connection == b"keep-alive":
        return None
    return PlainHead(
        words[0].decode(),
        words[1].decode(),
        host.decode(),
        connection == b"close" or words[2] == b"HTTP/1.0",
    )


class HotConnection(asyncio.Protocol):
    """One connection, until the full server has to take it over."""

    __slots__ = ("_at_hand", "_closed", "_full", "_handler", "_idle_s", "_last_used", "_timer", "_transport")

    def __init__(
        self,
        *,
        at_hand: Callable[[PlainHead], bytes | None],
        full: Callable[[], asyncio.Protocol],
        closed: "Callable[[HotConnection], None]",
        idle_s: float,
    ) -> None:
        """`at_hand` gives the wire form of an answer and counts it; `full` the protocol that takes over."""
        self._at_hand = at_hand
        self._full = full
        self._closed = closed
        self._idle_s = idle_s
        self._handler: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_used = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's TLS transport has the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._last_used = loop.time()
        self._timer = loop.call_later(self._idle_s, self._expire)

    def data_received(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.data_received(data)
            return
        assert self._transport is not None  # connection_made came first
        try:
            head = parse_plain_head(data)
            wire = self._at_hand(head) if head is not None else None
        except Exception as error:  # noqa: BLE001 - nothing was written yet: the full server still can (I1)
            head = wire = None
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a request goes to the full server because of a bug", "exception": error}
            )
        if head is None or wire is None:
            self._hand_over(data)
            return
        self._transport.write(wire)
        if head.closes:
            self._transport.close()
        else:
            self._last_used = asyncio.get_running_loop().time()

    def close_if_idle(self) -> None:
        """Close between two requests; a connection that was handed over is the full server's to close."""
        if self._handler is None and self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received() if self._handler is not None else None

    def pause_writing(self) -> None:
        if self._handler is not None:
            self._handler.pause_writing()
        elif self._transport is not None:
            self._transport.pause_reading()  # it asks faster than it reads

    def resume_writing(self) -> None:
        if self._handler is not None:
            self._handler.resume_writing()
        elif self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        self._closed(self)
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def _hand_over(self, data: bytes) -> None:
        assert self._transport is not None
        self._end_timer()
        self._handler = self._full()
        self._handler.connection_made(self._transport)
        self._handler.data_received(data)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._last_used + self._idle_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._expire)
        else:
            self.close_if_idle()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WireForm:
    """Renders ready answers; the part that never changes is rendered once."""

    def __init__(self) -> None:
        self._date = b""
        self._date_of = 0

    def of(self, ready: ReadyAnswer, head: PlainHead) -> bytes:
        """Status line, header fields and, for a GET, the body."""
        if ready.wire is None:
            ready.wire = _constant_part(ready.answer)
        close = b"Connection: close\r\n\r\n" if head.closes else b"\r\n"
        body = ready.body if head.method == "GET" else b""
        return b"".join((ready.wire, self._date_line(), close, body))

    def _date_line(self) -> bytes:
        now = int(time.time())
        if now != self._date_of:
            self._date_of = now
            self._date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._date


def _constant_part(answer: Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} OK",
        *(f"{name}: {value}" for name, value in answer.labelled().items()),
    ]
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")
