"""`connect`: an HTTP CONNECT proxy (RFC 9110, 9.3.6) that intercepts, such as docker-registry-proxy, or not.

The request is the registry's own, TLS to the registry included; what the proxy shows instead of the
registry's certificate is verified by `ConnectTrust`. Redirects go through the proxy as well: that is where
it caches blobs (FEATURES T2). A proxy that does not intercept is carried alike (T9).
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict

from tidegate_core.errors import TidegateError
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.exchange import Exchange, HttpResponse
from tidegate_proxy.upstreams.tier_trust import CA_LIMIT_BYTES, ConnectTrust, certificates_in
from tidegate_proxy.upstreams.tier_url import TierUrl
from tidegate_proxy.upstreams.upstream import FAILING


class ConnectCarrier:
    """Requests by way of one CONNECT proxy; `ca` is its CA's file, or where that is to be pinned."""

    kind = "connect"

    def __init__(
        self,
        url: TierUrl,
        *,
        system: Path | None,
        ca: Path,
        pin: bool,
        resolver: AbstractResolver,
        exempt: Callable[[socket.socket], None],
    ) -> None:
        self.url = url
        self._trust = ConnectTrust(system=system, file=ca, pin=pin, offered=self._offered, url=str(url))
        self._tunnels = Exchange(resolver=resolver, exempt=exempt, through=url)
        self._itself = Exchange(resolver=resolver, exempt=exempt)

    def gives_way(self, status: int) -> bool:
        return status in FAILING

    async def send(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None,
        follow_redirects: bool,
        own_authorization: str | None,
        silence_s: float | None,
    ) -> aiohttp.ClientResponse:
        if site.scheme == "http":
            raise OSError("plain HTTP is not sent through a CONNECT proxy")
        context = await self._trust.context(site.ca)
        if own_authorization is not None:
            headers = CIMultiDict(headers)
            headers["Authorization"] = own_authorization
        return await self._tunnels.send(
            site.origin + target,
            method,
            headers,
            tls=lambda _: context,
            body=body,
            follow_redirects=follow_redirects,
            silence_s=silence_s,
        )

    async def greet(self) -> None:
        await self._trust.context()
        await self._offered()  # any answer will do

    async def renew_trust(self) -> None:
        await self._trust.renewed()

    async def objection(self, error: ssl.SSLError | ssl.CertificateError) -> TidegateError:
        return await self._trust.objection(error)

    def is_own(self, error: BaseException) -> bool:
        return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
            error, aiohttp.ClientSSLError
        )

    async def close(self) -> None:
        await self._tunnels.close()
        await self._itself.close()

    async def _offered(self) -> bytes | None:
        """The certificate at the proxy's own /ca.crt; None when it answers with anything else."""
        answer = await self._itself.send(f"{self.url}/ca.crt", "GET", {}, tls=_no_tls)
        response = HttpResponse(answer)
        try:
            body = await response.read(CA_LIMIT_BYTES) if response.status == 200 else None
        finally:
            await response.close()
        return None if body is None else certificates_in(body)


def _no_tls(_: str) -> ssl.SSLContext:
    raise ValueError("a CONNECT proxy is spoken to without TLS")
