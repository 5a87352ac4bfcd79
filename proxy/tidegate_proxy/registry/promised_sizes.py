"""How large blobs are by the word of the manifests that name them.

A manifest is verified, a Content-Length is what anybody on the way claims. Where the two differ the
manifest's size is used for the fetch, and a transfer that came with a wrong length, or with none, ends well.
A wrong one costs no more than a wrong Content-Length would: the digest decides, and what did not work is
forgotten. In memory, bounded; nothing depends on it.
"""

from collections import OrderedDict

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, MalformedManifest, referenced_by
from tidegate_proxy.oci.digest import Digest

_MOST = 16_384


class PromisedSizes:
    """Sizes by digest, the newest of so many."""

    def __init__(self, *, most: int = _MOST) -> None:
        self._most = most
        self._sizes: OrderedDict[Digest, int] = OrderedDict()

    def learn(self, manifest: bytes, media_type: str) -> None:
        """Remember what a verified manifest promises."""
        try:
            described = referenced_by(manifest, media_type)
        except MalformedManifest:
            return
        for descriptor in described:
            if descriptor.media_type in MANIFEST_TYPES:
                continue
            self._sizes[descriptor.digest] = descriptor.size_bytes
            self._sizes.move_to_end(descriptor.digest)
        while len(self._sizes) > self._most:
            self._sizes.popitem(last=False)

    def of(self, digest: Digest) -> int | None:
        """The size, if a manifest told it."""
        return self._sizes.get(digest)

    def forget(self, digest: Digest) -> None:
        """What was promised did not come."""
        self._sizes.pop(digest, None)
