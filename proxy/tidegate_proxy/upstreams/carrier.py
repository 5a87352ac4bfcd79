"""How a request travels through a tier: what `connect` and `central` do differently."""

import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import aiohttp

from tidegate_core.errors import TidegateError
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.tier_url import TierUrl


class Carrier(Protocol):
    """Sends requests by way of one tier. It keeps no health."""

    kind: str
    url: TierUrl

    def gives_way(self, status: int) -> bool:
        """Whether the next upstream is asked instead of giving this answer."""
        ...

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
        """The answer's head; raises one of `exchange.FAILURES` or TierDistrusted."""
        ...

    async def greet(self) -> None:
        """Find out whether the tier itself answers; raises as `send` does."""
        ...

    async def renew_trust(self) -> None:
        """Read again what TLS is verified with; raises TierDistrusted."""
        ...

    async def objection(self, error: ssl.SSLError | ssl.CertificateError) -> TidegateError:
        """A refused certificate in words, with what to type; raises as `send` does."""
        ...

    def is_own(self, error: BaseException) -> bool:
        """Whether the failure is the tier's own, whatever it was asked for."""
        ...

    async def close(self) -> None:
        """Drop every connection."""
        ...
