"""One tier as an upstream: what it carries, and for how long nobody turns to it after it failed.

A failure that is the tier's own makes it dark as a whole, any other one for the site that was asked about:
a tier whose way to one registry is blocked may serve the others. Both are looked at in the background, in
the way in which they failed, after pauses that grow.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping

import aiohttp

from tidegate_core.errors import TidegateError
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.carrier import Carrier
from tidegate_proxy.upstreams.darkness import EVERY_S, Darkness
from tidegate_proxy.upstreams.exchange import FAILURES, ElsewhereUnreachable, HttpResponse, said
from tidegate_proxy.upstreams.tier_trust import words_of
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

LOOK_TIMEOUT_S = 2.0
LONGEST_PAUSE_S = 30.0
TELLING_S = 0.9
"""Who gives a tier less time than this learns nothing about it by giving up."""


class Tier:
    """A central or connect tier. `url` is for status and metrics: without the login."""

    def __init__(self, carrier: Carrier, *, look_every_s: float = EVERY_S) -> None:
        self._carrier = carrier
        self.kind = carrier.kind
        self.url = str(carrier.url)
        self._darkness: Darkness[Site | None] = Darkness(
            self._look, every_s=look_every_s, longest_s=LONGEST_PAUSE_S, interest_s=None
        )
        self._greeting: asyncio.Task[None] | None = None

    @property
    def failing(self) -> str:
        """Why nobody turns to it, for any site; empty while it is well."""
        return next(iter(self._darkness.reasons()), "")

    def open(self) -> None:
        """Look at it now, so that the first pull need not find out."""
        self._greeting = asyncio.create_task(self._greet(), name=f"greet {self.url}")

    async def close(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            await asyncio.gather(self._greeting, return_exceptions=True)
        await self._darkness.close()
        await self._carrier.close()

    def dark(self, site: Site) -> bool:
        return self._darkness.covers(None) or self._darkness.covers(site)

    def gives_way(self, status: int) -> bool:
        return self._carrier.gives_way(status)

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
        proven: bool = False,  # noqa: ARG002 - who asks which tier is decided before
        silence_s: float | None = None,
    ) -> HttpResponse:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(patience_s):
                response = await self._carrier.send(
                    site,
                    method,
                    target,
                    headers,
                    body=body,
                    follow_redirects=follow_redirects,
                    own_authorization=own_authorization,
                    silence_s=silence_s,
                )
        except asyncio.CancelledError:
            if body is None and loop.time() - began >= TELLING_S:
                self._darkness.begins(site, f"{site.authority}: no answer in time")
            raise
        except (TidegateError, *FAILURES) as error:
            raise UpstreamUnreachable(site, await self._failed(site, error)) from error
        self._darkness.ends(None)
        self._darkness.ends(site)
        return HttpResponse(response, broke=lambda cause: self._darkness.begins(site, cause))

    async def _failed(self, site: Site, error: BaseException) -> str:
        reason = await self._reason(error)
        if isinstance(error, ElsewhereUnreachable):
            return reason
        if isinstance(error, TidegateError) or self._carrier.is_own(error):
            self._darkness.begins(None, reason)
        else:
            self._darkness.begins(site, f"{site.authority}: {reason}")
        return reason

    async def _reason(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            refusal = error.certificate_error
            if isinstance(refusal, ssl.SSLError | ssl.CertificateError):
                try:
                    async with asyncio.timeout(LOOK_TIMEOUT_S):
                        return _with_remedy(await self._carrier.objection(refusal))
                except (TidegateError, *FAILURES):
                    return f"a certificate is refused ({words_of(refusal)})"
        if isinstance(error, TidegateError):
            return _with_remedy(error)
        return said(error)

    async def _greet(self) -> None:
        reason = await self._look(None)
        if reason:
            self._darkness.begins(None, reason)

    async def _look(self, site: Site | None) -> str:
        """Why the tier gives no answer, itself or for a site; empty when it gives any."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                await self._carrier.renew_trust()
                if site is None:
                    await self._carrier.greet()
                    return ""
                response = await self._carrier.send(
                    site,
                    "GET",
                    "/v2/",
                    {},
                    body=None,
                    follow_redirects=False,
                    own_authorization=None,
                    silence_s=None,
                )
        except (TidegateError, *FAILURES) as error:
            reason = await self._reason(error)
            return reason if site is None else f"{site.authority}: {reason}"
        response.close()
        return ""


def _with_remedy(error: TidegateError) -> str:
    return f"{error.cause}; {error.next_step}" if error.next_step else error.cause
