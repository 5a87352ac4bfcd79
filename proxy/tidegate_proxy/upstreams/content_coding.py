"""Bodies that somebody coded with gzip on the way, though `identity` was asked for (RFC 9110, 8.4; RFC 1952).

A digest names the bytes without the coding, and is verified after it has been taken off: so that is safe.
Other codings are not known here. This module compresses nothing.
"""

import zlib
from collections.abc import AsyncIterator, Mapping

from tidegate_proxy.upstreams.upstream import UpstreamBroken

_GZIP = frozenset({"gzip", "x-gzip"})
_MOST_AT_ONCE = 256 * 1024
_WBITS = zlib.MAX_WBITS | 16  # with gzip's header and trailer


def is_coded(headers: Mapping[str, str]) -> bool:
    """Whether the body is coded at all."""
    return headers.get("Content-Encoding", "identity").strip().lower() != "identity"


def is_gzipped(headers: Mapping[str, str]) -> bool:
    """Whether the body is coded in the way that is known here, and in no other besides."""
    return headers.get("Content-Encoding", "").strip().lower() in _GZIP


async def decoded(chunks: AsyncIterator[bytes | memoryview]) -> AsyncIterator[bytes]:
    """The bytes without gzip's coding, as they arrive, in pieces of bounded size; raises UpstreamBroken."""
    inflating = zlib.decompressobj(_WBITS)
    begun = False
    async for chunk in chunks:
        pending = bytes(chunk)
        while True:
            try:
                piece = inflating.decompress(pending, _MOST_AT_ONCE)
            except zlib.error as error:
                raise UpstreamBroken(f"a body that is said to be gzip is not: {error}") from error
            begun = True
            if piece:
                yield piece
            pending = inflating.unconsumed_tail
            if inflating.eof:  # another member may follow (RFC 1952, 2.2)
                pending, inflating, begun = inflating.unused_data, zlib.decompressobj(_WBITS), False
                if not pending:
                    break
            elif not pending and len(piece) < _MOST_AT_ONCE:
                break
    if begun:
        raise UpstreamBroken("a gzip body ends in the middle")
