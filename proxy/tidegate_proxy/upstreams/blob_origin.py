"""A blob at its registry, as the fetch reads it: GET with Range, redirects followed (FEATURES C8).

Asking again is not its business (`retrying`, `fetching.healing`). What it reads is the blob: a gzip coding
that somebody put on it on the way is taken off, and where a manifest told the size, that is believed and not
a Content-Length that differs. Either way the digest decides.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tidegate_proxy.fetching.origin import OriginBroken, OriginRefused, OriginUnreachable, Trouble
from tidegate_proxy.headers import content_length
from tidegate_proxy.oci.byte_range import Extent, From, RangeRequest, Suffix, parse_content_range
from tidegate_proxy.upstreams.content_coding import decoded, is_coded, is_gzipped
from tidegate_proxy.upstreams.requester import Requester
from tidegate_proxy.upstreams.upstream import UpstreamBroken, UpstreamResponse, UpstreamUnreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobOrigin:
    """`target` is the request's path and query, as the client sent it; `size_bytes` is a manifest's word."""

    requester: Requester
    target: str
    size_bytes: int | None = field(default=None, compare=False)

    async def read(self, wanted: RangeRequest) -> "BlobBody":
        response = await self._ask(wanted)
        if response.status == 206 and is_coded(response.headers):
            # A part of the coded bytes is no part of the blob (RFC 9110, 14.2).
            await response.close()
            response = await self._ask(From(0))
        body = BlobBody.of(response, wanted, self.size_bytes)
        if body is None:
            await response.close()
            raise OriginRefused(response.status)
        return body

    async def _ask(self, wanted: RangeRequest) -> UpstreamResponse:
        headers = {} if wanted == From(0) else {"Range": str(wanted)}
        try:
            return await self.requester.request("GET", self.target, headers, follow_redirects=True)
        except UpstreamUnreachable as error:
            raise OriginUnreachable(error.why, next_step=error.next_step) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobBody:
    """The answer to one GET; `first` and `size_bytes` are what its head said, or a manifest before it."""

    response: UpstreamResponse
    first: int
    size_bytes: int | None
    media_type: str | None
    ranged: bool = False

    @classmethod
    def of(
        cls, response: UpstreamResponse, wanted: RangeRequest, known_bytes: int | None = None
    ) -> "BlobBody | None":
        """None when the answer does not carry the blob's own bytes from a place that can be used."""
        headers = response.headers
        media_type = headers.get("Content-Type")
        coded = is_coded(headers)
        if response.status == 200 and (not coded or is_gzipped(headers)):
            told_bytes = None if coded else content_length(headers)
            size_bytes = told_bytes if known_bytes is None else known_bytes
            return cls(response=response, first=0, size_bytes=size_bytes, media_type=media_type)
        if response.status != 206 or coded:
            return None
        content_range = parse_content_range(headers.get("Content-Range", ""))
        if content_range is None:
            return None
        first, last, told_bytes = content_range
        size_bytes = told_bytes if known_bytes is None else known_bytes
        if isinstance(wanted, Suffix):
            fits = size_bytes is not None and wanted.resolve(size_bytes) == Extent(first, last)
        else:
            fits = first == wanted.first
        if not fits:
            return None
        return cls(response=response, first=first, size_bytes=size_bytes, media_type=media_type, ranged=True)

    async def chunks(self) -> AsyncIterator[bytes]:
        body = self.response.chunks()
        try:
            async for chunk in decoded(body) if is_gzipped(self.response.headers) else body:
                yield chunk
        except UpstreamBroken as error:
            raise OriginBroken(error.cause, trouble=_trouble(error)) from error

    async def close(self) -> None:
        await self.response.close()


def _trouble(error: BaseException | None) -> Trouble:
    """What ended a body early, by the error at the bottom of it."""
    while error is not None:
        if isinstance(error, ConnectionResetError):
            return "reset"
        if isinstance(error, TimeoutError):
            return "stalled"
        error = error.__cause__ or error.__context__
    return "truncated"
