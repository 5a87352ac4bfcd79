"""A connection that we answer TLS on, from its handshake to its end."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from tidegate_proxy.interception.intercepted import Intercepted

_HANDSHAKE_TIMEOUT_S = 10.0


async def terminate(
    sock: socket.socket,
    context: ssl.SSLContext,
    protocol: asyncio.Protocol,
    *,
    established: Callable[[], None],
) -> None:
    """Speak TLS, then `protocol`, until the connection ends; OSError where the handshake fails.

    Takes the socket. Cancelled, it cuts the connection.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def lost(_: Intercepted) -> None:
        if not ended.done():
            ended.set_result(None)

    connection = Intercepted(protocol, ended=lost)
    await loop.connect_accepted_socket(
        lambda: connection, sock, ssl=context, ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S
    )
    established()
    try:
        await ended
    finally:
        connection.abort()
