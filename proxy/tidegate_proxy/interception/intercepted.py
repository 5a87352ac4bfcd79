"""One connection that is intercepted, between its TLS transport and whoever speaks HTTP on it."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast


class Intercepted(asyncio.Protocol):
    """Passes everything on to the HTTP protocol, and tells when the connection ended."""

    __slots__ = ("_ended", "_protocol", "_transport", "lost")

    def __init__(self, protocol: asyncio.Protocol, *, ended: "Callable[[Intercepted], None]") -> None:
        self._protocol = protocol
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self.lost = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's TLS transport has the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        # The handshake ends with the client's word and we send no tickets, so nothing carries our ACK: a
        # client with Nagle's algorithm (all but Go's) would hold its request back for it, 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
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
