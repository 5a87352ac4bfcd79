"""What a client says first, read without taking it: the same bytes go on to whoever serves it.

recv(2) MSG_PEEK and socket(7) SO_RCVLOWAT: the kernel wakes us only when as much has come as the parser
asked for, so a client that sends one byte at a time costs a handful of wake-ups. This module decides
nothing about the connection and never writes to it.
"""

import asyncio
import os
import socket
from enum import Enum, auto

from tidegate_proxy.interception.client_hello import ClientHello, NeedMore, NotTls, parse_client_hello

_FIRST_PEEK_BYTES = 4096


class Unheard(Enum):
    """Why there is no ClientHello to speak of, although nothing contradicts one."""

    SILENT = auto()
    """Nothing came in time, or the client closed its side without a word."""
    INCOMPLETE = auto()
    """A hello began and did not go on in time, or will not go on."""


async def peek_hello(sock: socket.socket, *, timeout_s: float) -> ClientHello | NotTls | Unheard:
    """Wait for a ClientHello at the start of a non-blocking socket, and leave it there.

    Raises `OSError` when the client reset the connection.
    """
    said = False
    needed = 1
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    data = sock.recv(max(needed, _FIRST_PEEK_BYTES), socket.MSG_PEEK)
                except (BlockingIOError, InterruptedError):
                    await _readable(sock)
                    continue
                if len(data) < needed:
                    # Woken before there was enough: the client reset the connection or closed its side, or
                    # the kernel has no room for so much. Whichever it is, waiting on would only spin.
                    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        raise OSError(error, os.strerror(error))
                    return Unheard.INCOMPLETE if data else Unheard.SILENT
                hello = parse_client_hello(data)
                if not isinstance(hello, NeedMore):
                    return hello
                said = True
                needed = hello.at_least
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
                await _readable(sock)
    except TimeoutError:
        return Unheard.INCOMPLETE if said else Unheard.SILENT
    finally:
        if said:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        # Before anything else owns the descriptor: a transport refuses one that is still being watched.
        loop.remove_reader(fd)
