"""Where the mirror is reached: an allow list, then TLS, then HTTP (FEATURES T3, T8)."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from tidegate_proxy.central.accepting import endpoint_of
from tidegate_proxy.central.access import Access
from tidegate_proxy.central.terminated import terminate
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.client_hello import ClientHello
from tidegate_proxy.interception.interceptor import Arrival, distrusts
from tidegate_proxy.interception.linger import reset
from tidegate_proxy.interception.peek import peek_hello

OUTCOMES = (
    ("mirror", "tls"),
    ("refused", "access"),
    ("refused", "not_tls"),
    ("refused", "distrusted"),
    ("refused", "handshake"),
)
_HELLO_TIMEOUT_S = 10.0


class MirrorDoor:
    """Handles one connection after another; whoever is not allowed is cut before a byte is read."""

    def __init__(
        self,
        *,
        access: Access,
        tls_context: Callable[[str | None], ssl.SSLContext],
        http_protocol: Callable[[Arrival], asyncio.Protocol],
        observe: Callable[[str, str], None],
        denied: Callable[[Endpoint], None],
    ) -> None:
        self._access = access
        self._tls_context = tls_context
        self._http_protocol = http_protocol
        self._observe = observe
        self._denied = denied

    async def handle(self, sock: socket.socket, peer: Endpoint) -> None:
        if not self._access.allows(peer.address):
            self._observe("refused", "access")
            self._denied(peer)
            reset(sock)
            return
        hello = await peek_hello(sock, timeout_s=_HELLO_TIMEOUT_S)
        if not isinstance(hello, ClientHello):
            self._observe("refused", "not_tls")
            return
        arrival = Arrival(sni=hello.sni or "", original=endpoint_of(sock.getsockname()), peer=peer)
        protocol = self._http_protocol(arrival)
        try:
            await terminate(
                sock,
                self._tls_context(hello.sni),
                protocol,
                established=lambda: self._observe("mirror", "tls"),
            )
        except OSError as error:
            self._observe("refused", "distrusted" if distrusts(error) else "handshake")
