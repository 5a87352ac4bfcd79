"""The upstream of last resort: the registry itself, over sockets that are never steered (I5).

Names are resolved by the agent's own resolver, TLS is verified against the system's trust store (or
the registry's own CA). Redirects, when asked to, are followed up to five hops; Authorization stays
with the origin it was meant for (RFC 9110, 15.4; FEATURES C8). A body is never decoded.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from tidegate_proxy.darkness import EVERY_S, Darkness
from tidegate_proxy.site import Site
from tidegate_proxy.upstream import UpstreamBroken, UpstreamUnreachable

MAX_REDIRECTS = 5
LOOK_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 900.0  # registries on object stores copy a whole layer before they acknowledge it
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HEADER_BYTES = 64 * 1024
_READ_BUFFER_BYTES = 1 << 20
_DISCARD_LIMIT_BYTES = 64 * 1024
_AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class DirectResponse:
    """`UpstreamResponse` over aiohttp's."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamBroken(f"{self._response.url.host} cut its answer short: {error!r}") from error

    async def read(self, limit_bytes: int) -> bytes | None:
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                return None
        return bytes(body)

    async def close(self) -> None:
        self._response.release() if self._response.content.at_eof() else self._response.close()


class DirectUpstream:
    """Requests straight to the registries, over a pool of kept-alive connections.

    Writes get a connection each: on a kept one that the registry is just closing they would fail, and what
    has a body cannot be sent again.

    `offline` says why no name resolves, if that is so. Then whoever has an alternative (and so gives a
    `patience_s`) is refused at once, although a kept connection might still answer: the client could not
    resolve the token service that the answer sends it to. Whoever has none is let try: the resolver may be
    back already (I1).
    """

    kind = "direct"

    def __init__(
        self,
        *,
        resolver: AbstractResolver,
        exempt: Callable[[socket.socket], None],
        tls: ssl.SSLContext,
        offline: Callable[[], str] = lambda: "",
        connections: int = 100,
        look_every_s: float = EVERY_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        """An answer's next bytes are waited for `idle_timeout_s`, an answer to a write `write_timeout_s`."""
        self._tls = tls
        self._offline = offline
        self._darkness = Darkness(self._answers, every_s=look_every_s)
        self.failing = ""
        """Why the last request got no answer; empty when it got one."""

        def exempt_socket(address: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, _ = address
            sock = socket.socket(family, kind, protocol)
            exempt(sock)
            return sock

        def session(timeout_s: float, *, keep_alive: bool) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=resolver,
                    use_dns_cache=False,
                    socket_factory=exempt_socket,
                    limit=connections,
                    keepalive_timeout=15 if keep_alive else None,
                    force_close=not keep_alive,
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s
                ),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                read_bufsize=_READ_BUFFER_BYTES,
                skip_auto_headers=_AUTOMATIC_HEADERS,
                trust_env=False,
            )

        self._reading = session(idle_timeout_s, keep_alive=True)
        self._writing = session(write_timeout_s, keep_alive=False)

    async def close(self) -> None:
        await self._darkness.close()
        await self._reading.close()
        await self._writing.close()

    def dark(self, site: Site) -> bool:
        return bool(self._offline()) or self._darkness.covers(site)

    async def request(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        patience_s: float | None = None,
        own_authorization: str | None = None,
        proven: bool = False,  # noqa: ARG002 - the registry judges for itself
    ) -> DirectResponse:
        if own_authorization is not None:
            headers = CIMultiDict(headers)
            headers["Authorization"] = own_authorization
        if patience_s is not None and (reason := self._offline()):
            self.failing = reason
            raise UpstreamUnreachable(site, reason)
        try:
            async with asyncio.timeout(patience_s):
                response = await self._exchange(site, method, target, headers, body, follow_redirects)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            cause = "no answer in time" if isinstance(error, TimeoutError) else str(error) or repr(error)
            self.failing = f"{site.authority}: {cause}"
            if not isinstance(error, _ElsewhereUnreachable):
                self._darkness.begins(site)
            raise UpstreamUnreachable(site, cause) from error
        self.failing = ""
        self._darkness.ends(site)
        return DirectResponse(response)

    async def _answers(self, site: Site) -> bool:
        """Whether the site gives any HTTP answer at all."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                response = await self._exchange(site, "GET", "/v2/", {}, None, follow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False
        response.close()
        return True

    async def _exchange(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes] | None,
        follow_redirects: bool,
    ) -> aiohttp.ClientResponse:
        url = site.origin + target
        sent = CIMultiDict(headers)
        sent["Host"] = site.authority
        tls = site.tls or self._tls
        session = self._reading if method in _READS else self._writing
        for followed in range(MAX_REDIRECTS + 1):
            try:
                response = await session.request(
                    method, URL(url, encoded=True), headers=sent, data=body, allow_redirects=False, ssl=tls
                )
            except (aiohttp.ClientError, OSError) as error:
                if followed:
                    raise _ElsewhereUnreachable(f"{urlsplit(url).hostname}: {error}") from error
                raise
            location = response.headers.get("Location")
            if not (follow_redirects and response.status in _REDIRECTS and location):
                break
            following = urljoin(url, location)
            if followed == MAX_REDIRECTS or urlsplit(following).scheme not in ("https", site.scheme):
                break  # not one that we follow; whether a client does is its own business
            await _discard(response)
            if _origin(following) != _origin(url):
                sent.popall("Authorization", None)
                sent.pop("Host", None)
                tls = self._tls
            url = following
        return response


class _ElsewhereUnreachable(OSError):
    """The site answered, but where it sent us does not."""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


async def _discard(response: aiohttp.ClientResponse) -> None:
    """Read a short body away so that the connection can be used again; drop the connection otherwise."""
    length = response.content_length
    if length is not None and length <= _DISCARD_LIMIT_BYTES:
        await response.read()
    else:
        response.close()
    response.release()


class NameResolver(AbstractResolver):
    """aiohttp's resolver interface over a function that looks a host name up.

    `addresses` returns textual addresses, IPv6 ones with their scope where they have one; `not_resolved`
    are the errors by which it says that there are none.
    """

    def __init__(
        self,
        addresses: Callable[[str], Awaitable[Iterable[str]]],
        *,
        not_resolved: tuple[type[Exception], ...] = (),
    ) -> None:
        self._addresses = addresses
        self._not_resolved = not_resolved

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._addresses(host)
        except self._not_resolved as error:
            raise OSError(str(error)) from error  # what aiohttp expects of a resolver
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
            if family == socket.AF_UNSPEC or (":" in address) == (family == socket.AF_INET6)
        ]

    async def close(self) -> None:
        """Nothing is held."""
