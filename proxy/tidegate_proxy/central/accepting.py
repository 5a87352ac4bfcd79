"""A door of the central tier: listeners, a bound on connections, and every connection until it ends.

Each connection is one task from accept(2) to close(2); beyond the bound the rest waits in the kernel's
backlog. This module decides nothing about a connection.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence

from tidegate_proxy.endpoint import Endpoint

MAX_CONNECTIONS = 8192
_ACCEPTS_AT_ONCE = 32
_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A client that takes nothing of what it asked for holds a connection so long, and no longer (I8).
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300_000),
)

Handle = Callable[[socket.socket, Endpoint], Awaitable[None]]


class Door:
    """Accepts connections and hands each to `handle`, which owns the socket and ends with it."""

    def __init__(
        self,
        *,
        handle: Handle,
        observe: Callable[[str, str], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._handle = handle
        self._observe = observe
        self._max_connections = max_connections
        self._listeners: tuple[socket.socket, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False
        self._accepts = True

    @property
    def connections(self) -> int:
        return len(self._tasks)

    def open(self, listeners: Sequence[socket.socket]) -> None:
        """Accept from non-blocking sockets that listen already; they stay the caller's."""
        self._listeners = tuple(listeners)
        self._watch()

    def stop_accepting(self) -> None:
        """Take no more connections; those that are there go on."""
        self._accepts = False
        self._unwatch()

    async def drain(self, within_s: float) -> None:
        """Wait for the connections to end, and cut what is left when time is up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _watch(self) -> None:
        if self._watching or not self._accepts or len(self._tasks) >= self._max_connections:
            return
        self._watching = True
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                asyncio.get_running_loop().remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if len(self._tasks) >= self._max_connections:
                self._unwatch()
                return
            try:
                sock, name = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # The backlog stays readable: without a pause this would spin until a descriptor is free.
                    self._observe("refused", "no_descriptors")
                    self._unwatch()
                    asyncio.get_running_loop().call_later(_PAUSE_S, self._watch)
                    return
                continue  # this one connection was gone before it was taken
            sock.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._connection(sock, endpoint_of(name)))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._watch()

    async def _connection(self, sock: socket.socket, peer: Endpoint) -> None:
        try:
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
            await self._handle(sock, peer)
        except OSError:
            self._observe("refused", "reset")
        except Exception as error:  # noqa: BLE001 - one connection's bug must not end the accepting loop
            self._observe("refused", "error")
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a connection is cut because of a bug", "exception": error}
            )
        finally:
            sock.close()


def endpoint_of(name: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """A socket's name as a value."""
    return Endpoint.of(name[0], name[1])
