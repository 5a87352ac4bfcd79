"""Blobs: from the store, or fetched once and streamed to everyone who waits.

Whoever calls `stored` or `fetched` knows that the repository holds the blob and that the client may read it
(I6): the store and a fetch that runs are shared by all repositories.

HEAD is answered from metadata and never becomes a download (FEATURES C9). Ranges are RFC 9110's single
ones (C10); a whole body and a resumed rest are held back at the tail until the digest matched (I2).
"""

from collections.abc import Callable
from datetime import datetime

from multidict import CIMultiDict

from tidegate_proxy.fetching.fetch import Fetches
from tidegate_proxy.fetching.origin import OriginRefused
from tidegate_proxy.headers import descriptive
from tidegate_proxy.oci.byte_range import From, RangeRequest, Unsatisfiable, parse_range
from tidegate_proxy.oci.condition import entity_tag, is_known
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.request_path import Blob
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.registry.promised_sizes import PromisedSizes
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.store import Store
from tidegate_proxy.upstreams.blob_origin import BlobOrigin
from tidegate_proxy.upstreams.requester import Requester

_MEDIA_TYPE = "application/octet-stream"


class Blobs:
    """Answers GET and HEAD of a blob."""

    def __init__(
        self,
        *,
        store: Store,
        index: Index,
        fetches: Fetches,
        sizes: PromisedSizes,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._index = index
        self._fetches = fetches
        self._sizes = sizes
        self._now = now

    def stored(self, incoming: Incoming, digest: Digest) -> Answer | None:
        """The answer from the store, or None when the blob is not in it."""
        blob = self._store.blob(digest)
        if blob is None:
            return None
        self._index.touch(digest, self._now())
        headers = _describe(digest)
        if is_known(incoming.headers.getall("If-None-Match", ()), digest):
            blob.close()
            return Answer(status=304, headers=headers, cache=Cache.HIT, kind=Kind.BLOB)
        wanted = _range_of(incoming, digest)
        extent = wanted.resolve(blob.size_bytes) if wanted is not None else None
        if isinstance(extent, Unsatisfiable):
            return _unsatisfiable(extent, Cache.HIT)
        length = extent.length if extent is not None else blob.size_bytes
        headers["Content-Length"] = str(length)
        if extent is not None:
            headers["Content-Range"] = extent.content_range(blob.size_bytes)
        empty = incoming.method == "HEAD" or length == 0
        return Answer(
            status=206 if extent is not None else 200,
            headers=headers,
            body=b"" if empty else blob.stream(extent),
            cache=Cache.HIT,
            kind=Kind.BLOB,
        )

    async def described(
        self, incoming: Incoming, requester: Requester, *, patience_s: float | None = None
    ) -> Answer:
        """HEAD of a blob that is not in the store: the registry's word for it, redirects followed.

        Raises OriginRefused for a redirect that leads too far.
        """
        response = await requester.request(
            "HEAD", incoming.target, {}, follow_redirects=True, patience_s=patience_s
        )
        headers = descriptive(response.headers)
        headers["Accept-Ranges"] = "bytes"
        await response.close()
        if 300 <= response.status < 400:
            raise OriginRefused(response.status)
        return Answer(status=response.status, headers=headers, cache=Cache.MISS, kind=Kind.BLOB)

    async def fetched(self, incoming: Incoming, request: Blob, requester: Requester) -> Answer:
        """GET of a blob that is not in the store; raises OriginRefused or OriginUnreachable."""
        origin = BlobOrigin(
            requester=requester, target=incoming.target, size_bytes=self._sizes.of(request.digest)
        )
        wanted = _range_of(incoming, request.digest)
        transfer = await self._fetches.join(request.digest, origin, wanted)
        headers = _describe(request.digest)
        size_bytes = transfer.size_bytes
        if size_bytes is None or wanted is None:
            if size_bytes is not None:
                headers["Content-Length"] = str(size_bytes)
            body = transfer.stream(None, hold_tail=True)
            return Answer(status=200, headers=headers, body=body, cache=Cache.MISS, kind=Kind.BLOB)
        extent = wanted.resolve(size_bytes)
        if isinstance(extent, Unsatisfiable):
            return _unsatisfiable(extent, Cache.MISS)
        headers["Content-Length"] = str(extent.length)
        headers["Content-Range"] = extent.content_range(size_bytes)
        body = transfer.stream(extent, hold_tail=isinstance(wanted, From))
        return Answer(status=206, headers=headers, body=body, cache=Cache.MISS, kind=Kind.BLOB)


def _describe(digest: Digest) -> CIMultiDict[str]:
    return CIMultiDict(
        {
            "Content-Type": _MEDIA_TYPE,
            "Docker-Content-Digest": str(digest),
            "ETag": entity_tag(digest),
            "Accept-Ranges": "bytes",
            "Docker-Distribution-Api-Version": "registry/2.0",
        }
    )


def _range_of(incoming: Incoming, digest: Digest) -> RangeRequest | None:
    """The range to serve; none for a HEAD or when If-Range names something else (RFC 9110 13.1.5)."""
    if incoming.method != "GET":
        return None
    if_range = incoming.headers.get("If-Range")
    if if_range is not None and if_range != entity_tag(digest):
        return None
    return parse_range(incoming.headers.get("Range"))


def _unsatisfiable(found: Unsatisfiable, cache: Cache) -> Answer:
    headers = CIMultiDict({"Content-Range": found.content_range(), "Accept-Ranges": "bytes"})
    return Answer(status=416, headers=headers, cache=cache, kind=Kind.BLOB)
