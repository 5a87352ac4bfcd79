"""One connection that is intercepted, between its TLS transport and whoever speaks HTTP on it."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from tidegate_proxy.interception.linger import end_when_closed, reset_when_closed


class Intercepted(asyncio.Protocol):
    """Passes everything on to the HTTP protocol, and tells when the connection ended.

    Ends in order when HTTP closes it or the client has: else, as at the death of this process, with a reset.
    """

    __slots__ = ("_ended", "_protocol", "_transport", "lost")

    def __init__(self, protocol: asyncio.Protocol, *, ended: "Callable[[Intercepted], None]") -> None:
        self._protocol = protocol
        self._ended = ended
        self._transport: _Transport | None = None
        self.lost = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = _Transport(transport)
        self._protocol.connection_made(cast(asyncio.Transport, self._transport))

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        if self._transport is not None:
            self._transport.end_in_order()
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        try:
            if self._transport is not None:
                self._protocol.connection_lost(exc)
        finally:
            self._ended(self)


class _Transport:
    """The TLS transport, for HTTP: `close` is an orderly end, which nothing else is.

    Not an asyncio.Transport, as uvloop's own is none: that one cannot be derived from, and what is called for
    each request must not cost a call more.
    """

    __slots__ = ("_socket", "_transport", "abort", "is_closing", "write", "writelines")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.abort = self._transport.abort
        self.is_closing = self._transport.is_closing
        self.write = self._transport.write
        self.writelines = self._transport.writelines
        self._socket: socket.socket = transport.get_extra_info("socket")
        # The handshake ends with the client's word and we send no tickets, so nothing carries our ACK: a
        # client with Nagle's algorithm (all but Go's) would hold its request back for it, 40 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        reset_when_closed(self._socket)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self.end_in_order()
        self._transport.close()

    def end_in_order(self) -> None:
        if not self._transport.is_closing():
            with suppress(OSError):  # it is gone already
                end_when_closed(self._socket)
