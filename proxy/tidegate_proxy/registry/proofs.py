"""Whether a repository holds what a reader of it wants, from memory or by one question (DESIGN, 6; I6).

In whose name is asked decides who may rely on the answer: in nobody's for what everyone reads, in the shared
login's for what that shares. Readers by their own right have asked already, in their own name.
"""

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.membership import Membership
from tidegate_proxy.registry.public import Readable, Right, Shown
from tidegate_proxy.upstreams.requester import Requester


class Proofs:
    """What repositories are known or shown to hold."""

    def __init__(self, *, membership: Membership, readable: Readable) -> None:
        self._membership = membership
        self._readable = readable

    async def known(self, requester: Requester, digest: Digest) -> bool:
        """Whether the repository is known to hold it. Nobody is asked."""
        return await self._membership.holds(requester.site, requester.repository, digest)

    async def shown(self, requester: Requester, kind: str, digest: Digest) -> Shown:
        """Whether it holds one of its `manifests` or `blobs`, as far as these readers may know."""
        if await self.known(requester, digest):
            return Shown.YES
        if requester.own:
            return Shown.NO
        target = f"/v2/{requester.repository}/{kind}/{digest}"
        right = Right.SHARED if requester.shared else Right.PUBLIC
        return await self._readable.shows(requester.site, requester.repository, target, right)

    async def named(self, requester: Requester, digest: Digest) -> Shown:
        """The registry just said that a tag names this manifest: whether these readers may rely on it."""
        if requester.own:
            await self._membership.learn(requester.site, requester.repository, digest)
        return await self.shown(requester, "manifests", digest)
