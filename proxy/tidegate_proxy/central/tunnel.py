"""Where a tunnel ends: a host and a port become a connected socket (RFC 9110, 9.3.6).

Directly, or through a CONNECT proxy where that is the only way out (FEATURES T9).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from tidegate_proxy.central.access import is_reachable_through_us
from tidegate_proxy.central.head_reader import read_head
from tidegate_proxy.central.request_head import Authority, MalformedHead
from tidegate_proxy.upstreams.exchange import basic
from tidegate_proxy.upstreams.tier_url import TierUrl

CONNECT_TIMEOUT_S = 10.0
_OURS = "that is this machine or its link: nothing there is tunnelled to"

Dial = Callable[[Authority], Awaitable[socket.socket]]
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
                raise NotTunnelled(_OURS, denied=True)
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


async def dial_through(to: Authority, parents: Sequence[TierUrl], *, resolve: Resolve) -> socket.socket:
    """The same by the first of these proxies that agrees; what follows its answer is left on the socket."""
    if _is_denied_address(to.host):
        raise NotTunnelled(_OURS, denied=True)
    causes = []
    for parent in parents:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await _tunnelled(to, parent, resolve)
        except (OSError, MalformedHead) as error:
            causes.append(f"{parent}: {getattr(error, 'strerror', None) or error or 'no answer in time'}")
    raise NotTunnelled("; ".join(causes))


async def _tunnelled(to: Authority, parent: TierUrl, resolve: Resolve) -> socket.socket:
    cause: OSError = OSError("it has no address")
    for address in await resolve(parent.host):
        try:
            sock = await _connected(address, parent.port)
        except OSError as error:
            cause = error
            continue
        try:
            login = f"Proxy-Authorization: {basic(parent.login)}\r\n" if parent.login else ""
            head = f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n"
            await asyncio.get_running_loop().sock_sendall(sock, head.encode())
            status = (await read_head(sock)).decode("latin-1").split(" ", 2)
            if len(status) < 2 or not status[0].startswith("HTTP/1.") or not status[1].startswith("2"):
                raise OSError(f"CONNECT is answered {status[1][:3] if len(status) > 1 else 'with nothing'}")
        except BaseException:
            sock.close()
            raise
        return sock
    raise cause


def _is_denied_address(host: str) -> bool:
    try:
        return not is_reachable_through_us(ip_address(host))
    except ValueError:
        return False


async def _connected(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock
