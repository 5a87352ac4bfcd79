"""A head from a socket and not a byte more: what follows belongs to somebody else (recv(2), MSG_PEEK)."""

import asyncio
import socket

from tidegate_proxy.central.request_head import MAX_HEAD_BYTES, MalformedHead

_END = b"\r\n\r\n"


async def read_head(sock: socket.socket) -> bytes:
    """The bytes up to and with the empty line; none when the peer closes first. Raises MalformedHead."""
    loop = asyncio.get_running_loop()
    head = b""
    while not head.endswith(_END):
        if len(head) >= MAX_HEAD_BYTES:
            raise MalformedHead(f"its head is longer than {MAX_HEAD_BYTES} bytes")
        try:
            seen = sock.recv(MAX_HEAD_BYTES - len(head), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock.fileno(), _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock.fileno())
            continue
        if not seen:
            return b""
        end = (head + seen).find(_END)
        head += sock.recv(len(seen) if end < 0 else end + len(_END) - len(head))
    return head


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
