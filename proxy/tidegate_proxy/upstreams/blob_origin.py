"""A blob at its registry, as the fetch reads it: GET with Range, redirects followed (FEATURES C8).

A server error is asked again, because one of them handed on ends a containerd, podman or skopeo pull.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tidegate_proxy.fetching.origin import OriginBroken, OriginRefused, OriginUnreachable
from tidegate_proxy.headers import content_length
from tidegate_proxy.oci.byte_range import From, parse_content_range
from tidegate_proxy.upstreams.requester import Requester
from tidegate_proxy.upstreams.upstream import UpstreamBroken, UpstreamResponse, UpstreamUnreachable

_PAUSES_S = (0.1, 0.4)
_FLEETING = frozenset({500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobOrigin:
    """`target` is the request's path and query, as the client sent it."""

    requester: Requester
    target: str

    async def read(self, first: int) -> "BlobBody":
        headers = {"Range": str(From(first))} if first else {}
        for pause_s in (*_PAUSES_S, None):
            try:
                response = await self.requester.request("GET", self.target, headers, follow_redirects=True)
            except UpstreamUnreachable as error:
                raise OriginUnreachable(error.why, next_step=error.next_step) from error
            if response.status not in _FLEETING or pause_s is None:
                break
            await response.close()
            await asyncio.sleep(pause_s)
        body = BlobBody.of(response, first)
        if body is None:
            await response.close()
            raise OriginRefused(response.status)
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobBody:
    """The answer to one GET; `first` and `size_bytes` are what its head said."""

    response: UpstreamResponse
    first: int
    size_bytes: int | None
    media_type: str | None

    @classmethod
    def of(cls, response: UpstreamResponse, asked_first: int) -> "BlobBody | None":
        """None when the answer does not carry the blob's own bytes from a place that can be used."""
        headers = response.headers
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            return None
        media_type = headers.get("Content-Type")
        if response.status == 200:
            size_bytes = content_length(headers)
            return cls(response=response, first=0, size_bytes=size_bytes, media_type=media_type)
        if response.status != 206:
            return None
        content_range = parse_content_range(headers.get("Content-Range", ""))
        if content_range is None or content_range[0] != asked_first:
            return None
        return cls(response=response, first=asked_first, size_bytes=content_range[2], media_type=media_type)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.response.chunks():
                yield chunk
        except UpstreamBroken as error:
            raise OriginBroken(error.cause) from error

    async def close(self) -> None:
        await self.response.close()
