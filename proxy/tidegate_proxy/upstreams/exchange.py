"""HTTP exchanges with registries and tiers, over sockets that are never steered (I5).

Names are resolved by the agent's own resolver. Redirects, when asked to, are followed up to five hops;
credentials stay with the origin they were meant for (RFC 9110, 15.4; FEATURES C8). Where a redirect leads to
a refusal the first one is asked for another redirect, once: the refusal is about the signature in it, not
about who asks. A body is never decoded. This module knows no registry, and remembers nothing but connections.
"""

import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict
from yarl import URL

from tidegate_proxy.upstreams.tier_url import TierUrl
from tidegate_proxy.upstreams.upstream import UpstreamBroken

FAILURES = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
"""What `Exchange.send` raises when there is no answer."""

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 900.0  # registries on object stores copy a whole layer before they acknowledge it
READS = frozenset({"GET", "HEAD", "OPTIONS"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_THERE = frozenset({400, 401, 403, 404, 410})  # what object stores answer to a signature that has expired
_MAX_FIELD_BYTES = 256 * 1024
_MAX_FIELDS = 1024
_FIRST_READS_BYTES, _FIRST_BYTES = 1 << 16, 1 << 20
_READS_BYTES = 1 << 20
_DISCARD_LIMIT_BYTES = 64 * 1024
_AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_FOR_ONE_ORIGIN = ("Authorization", "Proxy-Authorization", "Host")


class ElsewhereUnreachable(OSError):
    """The one that was asked answered, but where it sent us does not."""


class HttpResponse:
    """`UpstreamResponse` over aiohttp's; `broke` is told why the body ended early."""

    def __init__(
        self, response: aiohttp.ClientResponse, *, broke: Callable[[str], None] = lambda _: None
    ) -> None:
        self._response = response
        self._broke = broke
        self.status = response.status
        self.headers = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The first ones are small: decrypting a large one would hold up what is done with them."""
        received = 0
        try:
            async for chunk in self._response.content.iter_any():
                if received < _FIRST_BYTES <= received + len(chunk):
                    self._response.content.set_read_chunk_size(_READS_BYTES)
                received += len(chunk)
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if arrived := _arrived_before_the_end(self._response.content):
                yield arrived
            cause = f"{self._response.url.host} cut its answer short: {said(error)}"
            self._broke(cause)
            raise UpstreamBroken(cause) from error

    async def read(self, limit_bytes: int) -> bytes | None:
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                return None
        return bytes(body)

    async def close(self) -> None:
        self._response.release() if self._response.content.at_eof() else self._response.close()


class Exchange:
    """Requests over a pool of kept-alive connections, through an HTTP CONNECT proxy if one is given.

    Writes get a connection each: on a kept one that the other side is just closing they would fail, and what
    has a body cannot be sent again.
    """

    def __init__(
        self,
        *,
        resolver: AbstractResolver,
        exempt: Callable[[socket.socket], None],
        through: TierUrl | None = None,
        connections: int = 100,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        """An answer's next bytes are waited for `idle_timeout_s`, an answer to a write `write_timeout_s`."""

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
                timeout=_timeout(timeout_s),
                max_line_size=_MAX_FIELD_BYTES,
                max_field_size=_MAX_FIELD_BYTES,
                max_headers=_MAX_FIELDS,
                read_bufsize=_FIRST_READS_BYTES,
                skip_auto_headers=_AUTOMATIC_HEADERS,
                trust_env=False,
            )

        self._reading = session(idle_timeout_s, keep_alive=True)
        self._writing = session(write_timeout_s, keep_alive=False)
        # aiohttp repeats a PUT or DELETE that got no answer, once, also on a connection that is new; it has
        # no public switch for that. What has perhaps been done is not ours to do again.
        self._writing._retry_connection = False
        self._proxy = None if through is None else URL(through.origin)
        login = through.login if through is not None else None
        self._proxy_headers = None if login is None else {"Proxy-Authorization": basic(login)}

    async def close(self) -> None:
        """Drop every connection."""
        await self._reading.close()
        await self._writing.close()

    async def send(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        *,
        tls: Callable[[str], ssl.SSLContext],
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        silence_s: float | None = None,
    ) -> aiohttp.ClientResponse:
        """The answer's head; raises one of FAILURES.

        `tls` gives the context for an https URL that is about to be asked. `silence_s` is how long the answer
        to a read may pause, if not the usual time.
        """
        response, followed = await self._sent(
            url, method, headers, tls=tls, body=body, follow_redirects=follow_redirects, silence_s=silence_s
        )
        if followed and response.status in _NOT_THERE and body is None and method in READS:
            response.close()
            response, _ = await self._sent(
                url, method, headers, tls=tls, body=None, follow_redirects=True, silence_s=silence_s
            )
        return response

    async def _sent(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        *,
        tls: Callable[[str], ssl.SSLContext],
        body: AsyncIterator[bytes] | None,
        follow_redirects: bool,
        silence_s: float | None,
    ) -> tuple[aiohttp.ClientResponse, int]:
        """The answer's head, and how many redirects led to it."""
        first = urlsplit(url)
        sent = CIMultiDict(headers)
        sent["Host"] = first.netloc
        session = self._reading if method in READS else self._writing
        timeout = session.timeout if silence_s is None else _timeout(silence_s)
        for followed in range(MAX_REDIRECTS + 1):
            try:
                response = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=sent,
                    data=body,
                    allow_redirects=False,
                    ssl=tls(url) if urlsplit(url).scheme == "https" else True,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                    timeout=timeout,
                )
            except (aiohttp.ClientError, OSError) as error:
                if followed:
                    raise ElsewhereUnreachable(f"{urlsplit(url).hostname}: {said(error)}") from error
                raise
            location = response.headers.get("Location")
            if not (follow_redirects and response.status in _REDIRECTS and location):
                break
            following = urljoin(url, location)
            if followed == MAX_REDIRECTS or urlsplit(following).scheme not in ("https", first.scheme):
                break  # not one that we follow; whether a client does is its own business
            await _discard(response)
            if _origin(following) != _origin(url):
                for name in _FOR_ONE_ORIGIN:
                    sent.popall(name, None)
            url = following
        return response, followed


def basic(login: tuple[str, str]) -> str:
    """User and password as RFC 7617 has them."""
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"


def said(error: BaseException) -> str:
    """What a failure says of itself, in words."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"CONNECT is answered {error.status} {error.message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or repr(error)


def _timeout(read_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_s)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _arrived_before_the_end(content: aiohttp.StreamReader) -> bytes:
    """What came before the body broke and was not read yet: up to a buffer, which would be asked for again.

    aiohttp keeps it, but gives nothing but the error any more; there is no public way to it.
    """
    return b"".join(content._buffer)


async def _discard(response: aiohttp.ClientResponse) -> None:
    """Read a short body away so that the connection can be used again; drop the connection otherwise."""
    length = response.content_length
    if length is not None and length <= _DISCARD_LIMIT_BYTES:
        await response.read()
    else:
        response.close()
    response.release()
