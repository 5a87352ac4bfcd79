"""`central`: a tier that speaks for registries in its own name: `GET <url>/v2/...?ns=<registry>`.

The containerd mirror protocol (docs/hosts.md): this software, or any mirror that speaks it. The node proves
itself by a client certificate or by Proxy-Authorization; Authorization stays the client's, for the registry,
and what we obtained ourselves is not sent (DESIGN, section 6). Only reads travel this way.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict

from tidegate_core.errors import TidegateError
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.exchange import Exchange, basic
from tidegate_proxy.upstreams.tier_trust import CentralTrust, TierDistrusted, words_of
from tidegate_proxy.upstreams.tier_url import TierUrl


class CentralCarrier:
    """Requests to one central tier; without `ca` it is verified as any web server is."""

    kind = "central"

    def __init__(
        self,
        url: TierUrl,
        *,
        system: Path | None,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        elsewhere: ssl.SSLContext,
        resolver: AbstractResolver,
        exempt: Callable[[socket.socket], None],
    ) -> None:
        """`elsewhere` is how hosts are verified that the tier redirects to."""
        self.url = url
        self._trust = CentralTrust(system=system, ca=ca, certificate=certificate, key=key)
        self._elsewhere = elsewhere
        self._exchange = Exchange(resolver=resolver, exempt=exempt)

    def gives_way(self, status: int) -> bool:
        """Whatever it refuses, the registry may give: it knows more."""
        return status >= 400

    async def send(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None,
        follow_redirects: bool,
        own_authorization: str | None,  # noqa: ARG002 - the tier speaks to the registry in its own name
        silence_s: float | None,
    ) -> aiohttp.ClientResponse:
        separator = "&" if "?" in target else "?"
        return await self._send(
            f"{target}{separator}ns={quote(site.namespace, safe='')}",
            method,
            headers,
            body=body,
            follow_redirects=follow_redirects,
            silence_s=silence_s,
        )

    async def greet(self) -> None:
        response = await self._send("/v2/", "GET", {})
        response.close()

    async def renew_trust(self) -> None:
        if self.url.scheme == "https":
            await self._trust.renewed()

    async def objection(self, error: ssl.SSLError | ssl.CertificateError) -> TidegateError:
        cause = f"its certificate is refused ({words_of(error)})"
        return TierDistrusted(cause, next_step="check ca in [[upstream]]")

    def is_own(self, error: BaseException) -> bool:
        return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError)

    async def close(self) -> None:
        await self._exchange.close()

    async def _send(
        self,
        target: str,
        method: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        silence_s: float | None = None,
    ) -> aiohttp.ClientResponse:
        own = await self._trust.context() if self.url.scheme == "https" else self._elsewhere
        if self.url.login is not None:
            headers = CIMultiDict(headers)
            headers["Proxy-Authorization"] = basic(self.url.login)
        return await self._exchange.send(
            f"{self.url}{target}",
            method,
            headers,
            tls=lambda url: own if url.startswith(f"{self.url.origin}/") else self._elsewhere,
            body=body,
            follow_redirects=follow_redirects,
            silence_s=silence_s,
        )
