"""The upstream of last resort: the registry itself.

TLS is verified against the system's trust store and, for a registry that has one, its own CA: at the registry
and wherever that sends us.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict

from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.darkness import EVERY_S, Darkness
from tidegate_proxy.upstreams.exchange import (
    FAILURES,
    IDLE_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    ElsewhereUnreachable,
    Exchange,
    HttpResponse,
    said,
)
from tidegate_proxy.upstreams.upstream import FAILING, UpstreamUnreachable

LOOK_TIMEOUT_S = 2.0


class DirectUpstream:
    """Requests straight to the registries.

    `offline` says why a host's name does not resolve, if no name does. Then whoever has an alternative (and
    so gives a `patience_s`) is refused at once, although a kept connection might still answer: the client
    could not resolve the token service that the answer sends it to. Whoever has none is let try: the resolver
    may be back already (I1).
    """

    kind = "direct"
    url = ""

    def __init__(
        self,
        *,
        resolver: AbstractResolver,
        exempt: Callable[[socket.socket], None],
        tls: ssl.SSLContext,
        offline: Callable[[str], str] = lambda _: "",
        look_every_s: float = EVERY_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        self._tls = tls
        self._offline = offline
        self._darkness: Darkness[Site] = Darkness(self._look, every_s=look_every_s)
        self.failing = ""
        """Why the last request got no answer; empty when it got one."""
        self._exchange = Exchange(
            resolver=resolver,
            exempt=exempt,
            idle_timeout_s=idle_timeout_s,
            write_timeout_s=write_timeout_s,
        )

    async def close(self) -> None:
        await self._darkness.close()
        await self._exchange.close()

    def dark(self, site: Site) -> bool:
        return bool(self._offline(site.host)) or self._darkness.covers(site)

    def gives_way(self, status: int) -> bool:
        """Whether another upstream, if there is one, is asked instead of giving this answer."""
        return status in FAILING

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
        private: bool = False,  # noqa: ARG002 - and nobody else sees it
        silence_s: float | None = None,
    ) -> HttpResponse:
        if patience_s is not None and (reason := self._offline(site.host)):
            self.failing = reason
            raise UpstreamUnreachable(site, reason)
        if own_authorization is not None:
            headers = CIMultiDict(headers)
            headers["Authorization"] = own_authorization
        try:
            async with asyncio.timeout(patience_s):
                response = await self._exchange.send(
                    site.origin + target,
                    method,
                    headers,
                    tls=lambda _: site.tls or self._tls,
                    body=body,
                    follow_redirects=follow_redirects,
                    silence_s=silence_s,
                )
        except FAILURES as error:
            cause = said(error)
            self.failing = f"{site.authority}: {cause}"
            if not isinstance(error, ElsewhereUnreachable):
                self._darkness.begins(site, self.failing)
            raise UpstreamUnreachable(site, cause) from error
        self.failing = ""
        self._darkness.ends(site)
        return HttpResponse(response)

    async def _look(self, site: Site) -> str:
        """Why the site gives no HTTP answer at all; empty when it gives any."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                response = await self._exchange.send(
                    f"{site.origin}/v2/", "GET", {}, tls=lambda _: site.tls or self._tls
                )
        except FAILURES as error:
            return f"{site.authority}: {said(error)}"
        response.close()
        return ""


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
