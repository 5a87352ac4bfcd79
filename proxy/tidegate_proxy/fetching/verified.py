"""A body that passes through under a digest: its tail leaves only when the digest has matched (I2)."""

from collections.abc import AsyncIterator

from tidegate_proxy.fetching.tail import HeldTail
from tidegate_proxy.oci.descriptor import MAX_MANIFEST_BYTES
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.signed_manifest import payload
from tidegate_proxy.storage.store import DigestMismatch


async def verified(
    body: AsyncIterator[bytes | memoryview], digest: Digest, size_bytes: int | None
) -> AsyncIterator[bytes | memoryview]:
    """The same bytes, the last 32 KiB late; raises DigestMismatch instead of ever completing a wrong body."""
    hasher = digest.hasher()
    tail = HeldTail(0, size_bytes)
    async for chunk in body:
        hasher.update(bytes(chunk))
        for piece in tail.push(chunk):
            yield piece
    if hasher.hexdigest() != digest.encoded:
        raise DigestMismatch(digest)
    for piece in tail.release():
        yield piece


async def verified_signed(
    body: AsyncIterator[bytes | memoryview], digest: Digest
) -> AsyncIterator[bytes | memoryview]:
    """A signed manifest at once, if what was signed matches the digest; raises DigestMismatch."""
    manifest = bytearray()
    async for chunk in body:
        manifest += chunk
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise DigestMismatch(digest)
    signed = payload(bytes(manifest))
    if signed is None or Digest.of(signed) != digest:
        raise DigestMismatch(digest)
    yield bytes(manifest)
