"""What a client says first, read without taking it: the same bytes go on to whoever serves it.

recv(2) MSG_PEEK and socket(7) SO_RCVLOWAT: the kernel wakes us only when as much has come as the parser
asked for, so a client that sends one byte at a time costs a handful of wake-ups. This module decides
nothing about the connection and never writes to it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeVar

from tidegate_proxy.interception.client_hello import ClientHello, NeedMore, NotTls, parse_client_hello
from tidegate_proxy.interception.http_head import MAX_HEAD_BYTES, HttpHead, NotHttp, parse_http_head

_Heard = TypeVar("_Heard")
_HELLO_BYTES = 4096  # at the first look: more than any hello seen


class Unheard(Enum):
    """Why nothing is known of the client, although nothing contradicts that it speaks as expected."""

    SILENT = auto()
    """Nothing came in time, or the client closed its side without a word."""
    INCOMPLETE = auto()
    """A hello, or a head, began and did not go on in time, or will not go on."""


async def peek_hello(sock: socket.socket, *, timeout_s: float) -> ClientHello | NotTls | Unheard:
    """Wait for a ClientHello at the start of a non-blocking socket, and leave it there.

    Raises `OSError` when the client reset the connection.
    """
    return await _peek(sock, parse_client_hello, timeout_s, at_once=_HELLO_BYTES)


async def peek_head(sock: socket.socket, *, timeout_s: float) -> HttpHead | NotHttp | Unheard:
    """The same for the head of an HTTP request."""
    return await _peek(sock, parse_http_head, timeout_s, at_once=2 * MAX_HEAD_BYTES)


async def _peek(
    sock: socket.socket, parse: Callable[[bytes], _Heard | NeedMore], timeout_s: float, *, at_once: int
) -> _Heard | Unheard:
    said = False
    needed = 1
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    data = sock.recv(max(needed, at_once), socket.MSG_PEEK)
                except (BlockingIOError, InterruptedError):
                    await _readable(sock)
                    continue
                if len(data) < needed:
                    # Woken before there was enough: the client reset the connection or closed its side, or
                    # the kernel has no room for so much. Whichever it is, waiting on would only spin.
                    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        raise OSError(error, os.strerror(error))
                    return Unheard.INCOMPLETE if data else Unheard.SILENT
                heard = parse(data)
                if not isinstance(heard, NeedMore):
                    return heard
                said = True
                needed = heard.at_least
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
