"""What an upstream is: somewhere to send a registry request, and how it fails.

The registry itself, a tier in front of it, or `Tiers`, which is all of them in their order.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from multidict import CIMultiDictProxy

from tidegate_core.errors import TidegateError
from tidegate_proxy.site import Site

FAILING = frozenset({429, 500, 502, 503, 504, *range(520, 531)})
"""Answers that say nothing about what was asked for: what is cached is better than any of them.

52x is a content delivery network that got no answer from its origin.
"""


class UpstreamUnreachable(TidegateError):
    """No HTTP answer could be had: the name does not resolve, nobody listens, TLS fails, or time ran out."""

    def __init__(self, site: Site, cause: str, *, next_step: str = "tidegate status") -> None:
        super().__init__(f"{site.authority} cannot be reached: {cause}", next_step=next_step)
        self.site = site
        self.why = cause


class UpstreamBroken(TidegateError):
    """The answer began and then the connection was cut, or its framing was wrong."""


class UpstreamResponse(Protocol):
    """An HTTP answer whose body has not been read yet; it must be closed."""

    status: int
    headers: CIMultiDictProxy[str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, content coding untouched; raises UpstreamBroken."""
        ...

    async def read(self, limit_bytes: int) -> bytes | None:
        """The whole body, or None when it is longer than the limit; raises UpstreamBroken."""
        ...

    async def close(self) -> None:
        """Give the connection back when the body was read, drop it otherwise."""
        ...


class Upstream(Protocol):
    """Sends one request and returns the answer's head."""

    kind: str

    def dark(self, site: Site) -> bool:
        """Whether this site failed so recently that nobody with an alternative should wait for it."""
        ...

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
        proven: bool = False,
        private: bool = False,
    ) -> UpstreamResponse:
        """Send `method target` to the site; `target` is path and query exactly as they go on the wire.

        `patience_s` bounds the time until the answer's head; who gives it has an alternative. `headers` may
        hold the client's Authorization; one that we obtained is given as `own_authorization` instead, for
        the registry alone: a tier that speaks for itself never sees it. `proven` says that whoever asks may
        read this: then also a cache that ignores credentials may answer; not so if it is `private`, or others
        would read it there. Raises UpstreamUnreachable.
        """
        ...
