"""The CONNECT port (RFC 9110, 9.3.6): configured registries are intercepted, others are tunnelled or refused.

FEATURES T1, T8. One port also has the pages that nodes are set up with. A client that asks for a registry
and then says anything but a ClientHello that we can answer gets a plain tunnel to that registry. This
module decides nothing about requests for images.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

from tidegate_proxy.central.accepting import endpoint_of
from tidegate_proxy.central.access import Access
from tidegate_proxy.central.head_reader import read_head
from tidegate_proxy.central.pages import Reply, page, said
from tidegate_proxy.central.request_head import (
    Authority,
    Connect,
    MalformedHead,
    Page,
    parse_head,
)
from tidegate_proxy.central.terminated import terminate
from tidegate_proxy.central.tunnel import Dial, NotTunnelled
from tidegate_proxy.central.via import passed_by
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.client_hello import ClientHello, NotTls
from tidegate_proxy.interception.interceptor import Arrival, distrusts
from tidegate_proxy.interception.peek import Unheard, peek_hello
from tidegate_proxy.interception.splice import CHUNK_BYTES, splice

OUTCOMES = (
    ("intercepted", "registry"),
    ("tunnelled", "other_host"),
    ("tunnelled", "other_sni"),
    ("tunnelled", "no_http1"),
    ("tunnelled", "not_tls"),
    ("page", "page"),
    ("refused", "access"),
    ("refused", "malformed"),
    ("refused", "other_host"),
    ("refused", "loop"),
    ("refused", "silent"),
    ("refused", "unreachable"),
    ("refused", "distrusted"),
    ("refused", "handshake"),
    ("refused", "reset"),
    ("refused", "no_descriptors"),
    ("refused", "error"),
)
HEAD_TIMEOUT_S = 10.0
_LINGER_S = 2.0
_HTTPS = 443
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectFront:
    """Handles one connection after another."""

    def __init__(
        self,
        *,
        access: Access,
        is_registry: Callable[[str, int], bool],
        tunnels: bool,
        tls_context: Callable[[str], ssl.SSLContext],
        http_protocol: Callable[[Arrival], asyncio.Protocol],
        dial: Dial,
        ca_pem: bytes,
        name: str,
        observe: Callable[[str, str], None],
        denied: Callable[[Endpoint], None],
        head_timeout_s: float = HEAD_TIMEOUT_S,
    ) -> None:
        """`tunnels`: whether other hosts may be reached, at port 443. `name` is ours in Via."""
        self._access = access
        self._is_registry = is_registry
        self._tunnels = tunnels
        self._tls_context = tls_context
        self._http_protocol = http_protocol
        self._dial = dial
        self._ca_pem = ca_pem
        self._name = name
        self._observe = observe
        self._denied = denied
        self._head_timeout_s = head_timeout_s
        self._scratch = memoryview(bytearray(CHUNK_BYTES))

    async def handle(self, sock: socket.socket, peer: Endpoint) -> None:
        own = endpoint_of(sock.getsockname())
        try:
            async with asyncio.timeout(self._head_timeout_s):
                head = await read_head(sock)
            wanted = parse_head(head, own_port=own.port) if head else None
        except TimeoutError:
            wanted = None
        except MalformedHead as error:
            await self._refuse(sock, "malformed", said(400, f"this request is not understood: {error.cause}"))
            return
        if wanted is None:
            self._observe("refused", "silent")
            return
        if not self._access.allows(peer.address):
            self._denied(peer)
            reply = said(
                403, f"{peer.address} may not use this proxy: see [access] allow in its configuration"
            )
            await self._refuse(sock, "access", reply)
        elif passed_by(wanted.via, self._name):
            await self._refuse(sock, "loop", said(508, "this request came through this very proxy already"))
        elif isinstance(wanted, Page):
            reply = page(wanted, ca_pem=self._ca_pem)
            self._observe("page", "page")
            await _say(sock, reply.wire(with_body=wanted.method != "HEAD"))
        else:
            await self._connect(sock, wanted, own, peer)

    async def _connect(self, sock: socket.socket, wanted: Connect, own: Endpoint, peer: Endpoint) -> None:
        to = wanted.to
        if self._is_registry(to.host, to.port):
            await _send(sock, _ESTABLISHED)
            await self._registry(sock, to, own, peer)
        elif not self._tunnels or to.port != _HTTPS:
            allowed = "registries, and port 443 of other hosts" if self._tunnels else "registries alone"
            await self._refuse(
                sock, "other_host", said(403, f"{to} is not for this proxy: it is for {allowed}")
            )
        else:
            await self._tunnel(sock, to, "other_host", established=False)

    async def _registry(self, sock: socket.socket, to: Authority, own: Endpoint, peer: Endpoint) -> None:
        heard = await peek_hello(sock, timeout_s=self._head_timeout_s)
        if heard is Unheard.SILENT:
            self._observe("refused", "silent")
            return
        if (reason := _why_tunnel(heard, to.host)) is not None:
            await self._tunnel(sock, to, reason, established=True)
            return
        arrival = Arrival(sni=to.host, original=Endpoint(own.address, to.port), peer=peer)
        try:
            context, protocol = self._tls_context(to.host), self._http_protocol(arrival)
        except Exception as error:  # noqa: BLE001 - nothing is consumed yet: the registry can still serve (I1)
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a connection is tunnelled because of a bug", "exception": error}
            )
            await self._tunnel(sock, to, "error", established=True)
            return
        try:
            await terminate(
                sock, context, protocol, established=lambda: self._observe("intercepted", "registry")
            )
        except OSError as error:
            self._observe("refused", "distrusted" if distrusts(error) else "handshake")

    async def _tunnel(self, sock: socket.socket, to: Authority, reason: str, *, established: bool) -> None:
        try:
            origin = await self._dial(to)
        except NotTunnelled as error:
            if established:
                self._observe("refused", "unreachable")
            elif error.denied:
                await self._refuse(sock, "other_host", said(403, f"{to}: {error}"))
            else:
                await self._refuse(sock, "unreachable", said(502, f"{to} cannot be reached: {error}"))
            return
        try:
            if not established:
                await _send(sock, _ESTABLISHED)
        except BaseException:
            origin.close()
            raise
        self._observe("tunnelled", reason)
        await splice(sock, origin, scratch=self._scratch)

    async def _refuse(self, sock: socket.socket, reason: str, reply: Reply) -> None:
        self._observe("refused", reason)
        await _say(sock, reply.wire())


def _why_tunnel(heard: ClientHello | NotTls | Unheard, host: str) -> str | None:
    """Why a registry's connection is not intercepted."""
    if not isinstance(heard, ClientHello):
        return "not_tls"
    if heard.sni is not None and heard.sni != host:
        return "other_sni"
    if heard.alpn and "http/1.1" not in heard.alpn:
        return "no_http1"
    return None


async def _send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def _say(sock: socket.socket, wire: bytes) -> None:
    """An answer that ends the connection; what still comes is taken, or a reset would eat the answer."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            await loop.sock_sendall(sock, wire)
            sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_S):
            while await loop.sock_recv(sock, 65536):
                pass
    except (OSError, TimeoutError):
        return
