"""Where a tunnel ends: a host and a port become a connected socket (RFC 9110, 9.3.6)."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from tidegate_proxy.central.access import is_reachable_through_us
from tidegate_proxy.central.request_head import Authority

CONNECT_TIMEOUT_S = 10.0

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class NotTunnelled(Exception):
    """Nothing is there, or it is not to be reached through us; `denied` tells which."""

    def __init__(self, cause: str, *, denied: bool = False) -> None:
        super().__init__(cause)
        self.denied = denied


async def dial(to: Authority, *, resolve: Resolve) -> socket.socket:
    """A non-blocking socket connected to the first address that answers; raises NotTunnelled."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = [ip_address(address) for address in await resolve(to.host)]
            allowed = [address for address in found if is_reachable_through_us(address)]
            if found and not allowed:
                raise NotTunnelled(
                    "that is this machine or its link: nothing there is tunnelled to", denied=True
                )
            cause: OSError | None = None
            for address in allowed:
                try:
                    return await _connected(str(address), to.port)
                except OSError as error:
                    cause = error
            raise NotTunnelled(cause.strerror or str(cause) if cause else "it has no address")
    except TimeoutError:
        raise NotTunnelled("no answer in time") from None
    except OSError as error:
        raise NotTunnelled(error.strerror or str(error)) from error


async def _connected(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock
