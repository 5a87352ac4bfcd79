"""Requests that can be answered at once are; everything else goes to the full HTTP server, byte for byte.

Clients open a connection for nearly every request, and most requests are for a manifest that is in memory.
Such a request comes as one plain head in one piece; whatever is not exactly that, or has no answer at hand,
makes the full server take the connection over with the bytes that came, for good. This module decides nothing
about content and waits for nothing.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from tidegate_proxy.http.addressing import Addressing
from tidegate_proxy.http.at_hand import AtHand

LAST_REQUEST_S = 2.0
_SWEPT_EVERY_S = 5.0


class HotConnections:
    """The open connections that the full server has not taken over; those that idle too long are closed."""

    def __init__(self, *, idle_s: float, swept_every_s: float = _SWEPT_EVERY_S) -> None:
        """One timer for all of them, so a connection may idle for `swept_every_s` longer."""
        self._idle_s = idle_s
        self._swept_every_s = swept_every_s
        self._open: set[HotConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ends = False
        self._end_timer: asyncio.TimerHandle | None = None

    def add(self, connection: "HotConnection") -> None:
        self._open.add(connection)
        if self._ends:
            connection.ends = True
            self._end_later()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._swept_every_s, self._sweep)

    def remove(self, connection: "HotConnection") -> None:
        """It was closed or handed over. Idempotent."""
        self._open.discard(connection)

    def end(self, *, for_good: bool) -> None:
        """Close those that idle; one just opened or used may ask once more: its request may be on its way.

        A client whose request meets a close tries again where the connection had served it before, and fails
        where it had not (net/http). With `for_good` those that are yet to be added end as well.
        """
        self._ends = for_good
        for connection in self._open:
            connection.ends = True
        self._end_idle()

    def _end_idle(self) -> None:
        self._end_timer = None
        before = time.monotonic() - LAST_REQUEST_S
        ending = [connection for connection in self._open if connection.ends]
        for connection in ending:
            if connection.last_used <= before:
                connection.close()
        if any(connection.last_used > before for connection in ending):
            self._end_later()

    def _end_later(self) -> None:
        if self._end_timer is None:
            self._end_timer = asyncio.get_running_loop().call_later(LAST_REQUEST_S / 4, self._end_idle)

    def _sweep(self) -> None:
        self._timer = None
        before = time.monotonic() - self._idle_s
        for connection in tuple(self._open):
            if connection.last_used <= before:
                connection.close()
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(self._swept_every_s, self._sweep)


class HotConnection(asyncio.Protocol):
    """One connection, until the full server has to take it over."""

    __slots__ = (
        "_addressing",
        "_at_hand",
        "_connections",
        "_full",
        "_handler",
        "_transport",
        "ends",
        "last_used",
    )

    def __init__(
        self,
        *,
        addressing: Addressing | None,
        at_hand: AtHand,
        full: Callable[[bool], asyncio.Protocol],
        connections: HotConnections,
    ) -> None:
        """`full` makes the protocol that takes over, told whether the next answer is the last one; without an
        addressing it takes over at once.
        """
        self._addressing = addressing
        self._at_hand = at_hand
        self._full = full
        self._connections = connections
        self._handler: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self.last_used = 0.0
        self.ends = False
        """With the next answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's TLS transport has the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        self.last_used = time.monotonic()
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.data_received(data)
            return
        assert self._transport is not None  # connection_made came first
        try:
            addressing = self._addressing
            answer = self._at_hand.answer(addressing, data) if addressing is not None else None
        except Exception as error:  # noqa: BLE001 - nothing was written yet: the full server still can (I1)
            answer = None
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a request goes to the full server because of a bug", "exception": error}
            )
        if answer is None:
            self._hand_over(data)
            return
        wire, closes = answer
        self._transport.write(wire)
        if closes or self.ends:
            self._transport.close()
        else:
            self.last_used = time.monotonic()

    def close(self) -> None:
        """Close between two requests."""
        if self._transport is not None:
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
        self._connections.remove(self)
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def _hand_over(self, data: bytes) -> None:
        assert self._transport is not None
        self._connections.remove(self)
        self._handler = self._full(self.ends)
        self._handler.connection_made(self._transport)
        self._handler.data_received(data)
