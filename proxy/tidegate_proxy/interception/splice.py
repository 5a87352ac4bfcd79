"""Bytes between a client and the origin it wanted, untouched, until both are done.

RFC 9293 3.6 (half-close), 3.8.4 (keep-alives). Sockets are driven directly, not through transports: the
neighbours on a shared address own this path, so it costs one copy in, one out and no object per chunk, and
only a direction whose sink is slower than its source holds bytes, one chunk at the most.

An idle splice is never cut: what both ends keep open stays open, and TCP keep-alives find the dead.
This module reads nothing of what passes.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from tidegate_proxy.interception.linger import end_when_closed, reset, reset_when_closed

CHUNK_BYTES = 256 * 1024
"""The most that is read at once, and so the most that one direction ever holds."""

_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced:
    """How a splice ended: bytes each way, and whether both ends closed in an orderly way."""

    to_origin_bytes: int
    to_client_bytes: int
    clean: bool


async def splice(client: socket.socket, origin: socket.socket, *, scratch: memoryview) -> Spliced:
    """Copy until both ends have closed or one has broken, then close both sockets, also when cancelled.

    Both sockets are non-blocking. `scratch` may serve every splice of one event loop. A reset on one side
    becomes a reset on the other: an end that was cut must not look like an end that was reached.
    """
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def end(clean: bool) -> None:
        if not ended.done():
            ended.set_result(clean)

    def one_way_done() -> None:
        if upward.done and downward.done:
            end(True)

    upward = _OneWay(client, origin, scratch, done=one_way_done, broken=lambda: end(False))
    downward = _OneWay(origin, client, scratch, done=one_way_done, broken=lambda: end(False))
    clean = False
    try:
        for sock in (client, origin):
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
            reset_when_closed(sock)
        upward.start()
        downward.start()
        clean = await ended
    except OSError:
        pass  # one end was gone before the first byte: not clean, as when it goes later
    finally:
        upward.stop()
        downward.stop()
        for sock in (client, origin):
            if clean:
                end_when_closed(sock)
                sock.close()
            else:
                reset(sock)
    return Spliced(to_origin_bytes=upward.moved, to_client_bytes=downward.moved, clean=clean)


class _OneWay:
    """Read what has come, write it at once; read no more while the sink has not taken all of it."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        scratch: memoryview,
        *,
        done: Callable[[], None],
        broken: Callable[[], None],
    ) -> None:
        self.moved = 0
        self.done = False
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._scratch = scratch
        self._held = memoryview(b"")
        self._tell_done = done
        self._tell_broken = broken

    def start(self) -> None:
        self._loop.add_reader(self._source.fileno(), self._readable)

    def stop(self) -> None:
        """Idempotent; the sockets must still be open."""
        self._loop.remove_reader(self._source.fileno())
        self._loop.remove_writer(self._sink.fileno())

    def _readable(self) -> None:
        try:
            count = self._source.recv_into(self._scratch)
            if count == 0:
                self._loop.remove_reader(self._source.fileno())
                self._sink.shutdown(socket.SHUT_WR)
                self.done = True
                self._tell_done()
                return
            sent = self._send(self._scratch[:count])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._tell_broken()
            return
        if sent < count:
            self._held = memoryview(bytes(self._scratch[sent:count]))
            self._loop.remove_reader(self._source.fileno())
            self._loop.add_writer(self._sink.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            self._held = self._held[self._send(self._held) :]
        except OSError:
            self._tell_broken()
            return
        if not self._held:
            self._loop.remove_writer(self._sink.fileno())
            self._loop.add_reader(self._source.fileno(), self._readable)

    def _send(self, data: memoryview) -> int:
        try:
            sent = self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        self.moved += sent
        return sent
