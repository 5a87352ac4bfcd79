"""The agent's own TCP sockets: where redirected connections arrive, and how spliced ones go on."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Iterable

from tidegate_agent.probe import PROBE_ADDRESS
from tidegate_agent.steering.eligibility import SINKHOLE
from tidegate_agent.steering.ruleset import PROBE6
from tidegate_core.errors import StartRefused
from tidegate_proxy.endpoint import Endpoint

_BACKLOG = 1024
_DIAL_TIMEOUT_S = 30.0


def has_ipv6_loopback() -> bool:
    """Whether a connection over IPv6 can be redirected to this host at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def listen(port: int) -> list[socket.socket]:
    """Listeners on loopback in both families (IPv6 where there is any); raises StartRefused."""
    return listen_on(
        (Endpoint.of("127.0.0.1", port), Endpoint.of("::1", port)),
        next_step="set [steering] port to a free one, or TIDEGATE_STEERING__PORT=18443",
    )


def listen_on(places: Iterable[Endpoint], *, next_step: str) -> list[socket.socket]:
    """Listeners at each place, IPv6 where there is any; raises StartRefused with what to type."""
    listeners: list[socket.socket] = []
    for place in places:
        try:
            listeners.append(_listening(place))
        except OSError as error:
            if place.address.version == 6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            for opened in listeners:
                opened.close()
            raise StartRefused(
                f"port {place.port} on {place.address} cannot be listened on: {error.strerror}",
                next_step=next_step,
            ) from error
    return listeners


def _listening(place: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if place.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(place.address), place.port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def exempt_dialler(
    exempt: Callable[[socket.socket], None], resolve: Callable[[str], Awaitable[Iterable[str]]]
) -> Callable[[Endpoint, str | None], Awaitable[socket.socket]]:
    """A function that connects to an endpoint past the rules, within 30 s; it raises OSError.

    Where the endpoint is a sinkhole, the client never knew where the host is that it asks for: `resolve`
    tells its addresses, or raises OSError.
    """

    async def dial(endpoint: Endpoint, host: str | None) -> socket.socket:
        async with asyncio.timeout(_DIAL_TIMEOUT_S):
            if endpoint.address != SINKHOLE:
                return await _connected(endpoint, exempt)
            failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "nobody knows where that is")
            for address in await resolve(host) if host is not None else ():
                try:
                    return await _connected(Endpoint.of(address, endpoint.port), exempt)
                except OSError as error:
                    failure = error
            raise failure

    return dial


async def _connected(endpoint: Endpoint, exempt: Callable[[socket.socket], None]) -> socket.socket:
    if endpoint.address == SINKHOLE or str(endpoint.address) == PROBE_ADDRESS or endpoint == PROBE6:
        # The probe's rule matches exempt sockets too: this would be dialling ourselves, for ever.
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"{endpoint.address} leads nowhere else")
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        exempt(sock)
        await asyncio.get_running_loop().sock_connect(sock, (str(endpoint.address), endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock
