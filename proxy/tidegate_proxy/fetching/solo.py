"""A reader that goes on alone: from its own request to its own origin, past the store.

That is what a full or broken disk costs: not the pull, only the sharing. The body is verified all the
same before its tail leaves. Memory holds the tail and one chunk. Nothing is written anywhere.
"""

import asyncio
from collections.abc import AsyncGenerator

from tidegate_proxy.fetching.healing import HealedBody, Patience
from tidegate_proxy.fetching.origin import Origin
from tidegate_proxy.fetching.outcome import Checkpoint
from tidegate_proxy.fetching.tail import HeldTail
from tidegate_proxy.oci.byte_range import Closed, From
from tidegate_proxy.oci.digest import Digest, Hasher
from tidegate_proxy.storage.store import DigestMismatch

# Below this a thread costs more than the hash.
_HASH_IN_THREAD_BYTES = 64 * 1024


async def verified_alone(
    digest: Digest,
    origin: Origin,
    patience: Patience,
    *,
    first: int,
    size_bytes: int | None,
    known: Checkpoint,
    held: bytes | memoryview = b"",
) -> AsyncGenerator[memoryview, None]:
    """The bytes from `first` to the end, the tail held until the digest has matched.

    Asks for the bytes after the checkpoint, even those before `first`: the digest needs them. `held`
    are the last bytes before the checkpoint, those that have not left yet. Raises DigestMismatch,
    OriginBroken.
    """
    hasher = known.hasher.copy()
    body = HealedBody(origin, From(known.position), patience, size_bytes=size_bytes)
    position = known.position - len(held)
    tail = HeldTail(position, size_bytes)
    leaving = tail.push(held)
    try:
        await body.open_patiently()
        while True:
            for part in leaving:
                if fresh := part[max(0, first - position) :]:
                    yield fresh
                position += len(part)
            if not (chunk := await body.read()):
                break
            await _update(hasher, chunk)
            leaving = tail.push(chunk)
        if hasher.hexdigest() != digest.encoded:
            raise DigestMismatch(digest)
        for part in tail.release():
            if fresh := part[max(0, first - position) :]:
                yield fresh
            position += len(part)
    finally:
        await body.close()


async def extent_alone(
    origin: Origin, patience: Patience, *, first: int, end: int, size_bytes: int | None
) -> AsyncGenerator[memoryview, None]:
    """The bytes from `first` to `end` (excluded) as they arrive, for extents that are no whole body."""
    body = HealedBody(origin, Closed(first, end - 1), patience, size_bytes=size_bytes)
    try:
        await body.open_patiently()
        while first < end and (chunk := await body.read()):
            part = memoryview(chunk)[: end - first]
            yield part
            first += len(part)
    finally:
        await body.close()


async def _update(hasher: Hasher, chunk: bytes | memoryview) -> None:
    if len(chunk) < _HASH_IN_THREAD_BYTES:
        hasher.update(chunk)
    else:
        await asyncio.to_thread(hasher.update, chunk)
