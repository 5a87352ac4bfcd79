"""Lists of tags and of referrers: always asked for, the last answer kept for when there is none (C7, C22).

A list is kept when the registry gave it in the name in which everyone reads that repository, so it is
everyone's by itself; repositories that nobody has read so far by such a right pass through. It is served
stale, up to `stale_max`, while the registry is dark or answers 429 or a server error. That a registry has no
lists of referrers, which is a 404, is kept too: clients then look for the tag that stands in for them.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from multidict import CIMultiDict

from tidegate_proxy.oci.request_path import Referrers, TagsList
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.storage.listings import Listing, Listings
from tidegate_proxy.upstreams.content_coding import is_coded
from tidegate_proxy.upstreams.requester import Requester
from tidegate_proxy.upstreams.upstream import FAILING, UpstreamBroken, UpstreamResponse, UpstreamUnreachable

MAX_BYTES = 1024 * 1024
_MAX_TARGET = 2048
_REFUSED = frozenset({401, 403})
_FIELDS = ("Content-Type", "Link", "OCI-Filters-Applied", "Docker-Distribution-Api-Version")
_Ask = Callable[[], Awaitable[Answer]]


class Lists:
    """Answers GET of a list in a repository that everyone reads."""

    def __init__(
        self,
        *,
        listings: Listings,
        now: Callable[[], datetime],
        stale_max: timedelta,
        patience_s: float,
    ) -> None:
        self._listings = listings
        self._now = now
        self._stale_max = stale_max
        self._patience_s = patience_s

    async def answer(
        self, incoming: Incoming, request: Referrers | TagsList, requester: Requester, pass_through: _Ask
    ) -> Answer:
        """For a requester by everyone's right; raises UpstreamUnreachable.

        `pass_through` asks in the client's own name, which is how it goes on where everyone's does not do.
        """
        if len(incoming.target) > _MAX_TARGET:
            return await pass_through()
        key = (requester.site.namespace, request.repository.name, incoming.target)
        kept = await self._kept(key)
        if kept is not None and (requester.upstream.dark(requester.site) or requester.must_wait):
            return kept
        try:
            response = await requester.request(
                "GET",
                incoming.target,
                CIMultiDict(("Accept", value) for value in incoming.headers.getall("Accept", [])),
                patience_s=None if kept is None else self._patience_s,
            )
            body = await _read(response)
        except (UpstreamUnreachable, UpstreamBroken):
            return kept or await pass_through()
        if response.status in FAILING:
            return kept or await pass_through()
        if response.status == 404 and isinstance(request, Referrers) and body is not None:
            answer = await pass_through()
            if answer.status == 404:
                await self._keep(key, response, body)
            return answer
        if response.status in _REFUSED:
            await self._listings.forget(*key[:2])  # everyone's no longer
        if response.status != 200 or body is None:
            return await pass_through()
        return _answer(await self._keep(key, response, body), Cache.MISS)

    async def _kept(self, key: tuple[str, str, str]) -> Answer | None:
        listing = await self._listings.get(*key)
        if listing is None or self._now() - listing.checked_at > self._stale_max:
            return None
        return _answer(listing, Cache.STALE)

    async def _keep(self, key: tuple[str, str, str], response: UpstreamResponse, body: bytes) -> Listing:
        fields = {name: response.headers[name] for name in _FIELDS if name in response.headers}
        listing = Listing(status=response.status, fields=fields, body=body, checked_at=self._now())
        await self._listings.put(*key, listing)
        return listing


async def _read(response: UpstreamResponse) -> bytes | None:
    """The body, and the answer closed; None where it is too long, or coded on the way."""
    try:
        return None if is_coded(response.headers) else await response.read(MAX_BYTES)
    finally:
        await response.close()


def _answer(listing: Listing, cache: Cache) -> Answer:
    headers = CIMultiDict(listing.fields)
    headers["Content-Length"] = str(len(listing.body))
    return Answer(status=listing.status, headers=headers, body=listing.body, cache=cache, kind=Kind.OTHER)
