"""Reads of what not everybody may read: in the client's own name, and from the cache once both proofs hold.

*Right*: the registry accepted this very credential for this repository. *Membership*: it showed that
digest, or a manifest that is made of it, in this repository. Whatever is missing is asked for by one HEAD,
in the client's name, of the very thing that the client wants; so a pull whose manifest was just asked for
costs nothing more for its layers. Where the HEAD does not prove it, and while the registry is dark, the
request passes through: then the registry's word reaches the client as it is, by the same requests whether
the store has the content or not (I6).

A HEAD of the client's own is passed through and proves the same by its answer.
"""

from multidict import CIMultiDict

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.request_path import Blob, ManifestByDigest, ManifestByTag
from tidegate_proxy.registry.answer import Answer, Incoming
from tidegate_proxy.registry.membership import Membership, claimed_digest, shown_by
from tidegate_proxy.registry.rights import Rights
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.rate_limits import RateLimits
from tidegate_proxy.upstreams.requester import Requester, Told
from tidegate_proxy.upstreams.signed_in import SignedIn
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamBroken, UpstreamUnreachable

_REFUSED = frozenset({401, 403})


class Private:
    """Finds out whether a client may be served by its own right."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        anonymous: Anonymous,
        signed_in: SignedIn,
        rights: Rights,
        membership: Membership,
        limits: RateLimits,
    ) -> None:
        self._upstream = upstream
        self._anonymous = anonymous
        self._signed_in = signed_in
        self._rights = rights
        self._membership = membership
        self._limits = limits

    async def requester(
        self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob
    ) -> Requester | None:
        """Who asks, once both proofs hold; None: the registry's own answer is the right one."""
        authorization = _only(incoming.headers.getall("Authorization", []))
        if authorization is None or self._upstream.dark(incoming.site):
            return None
        site, repository, digest = incoming.site, request.repository, _digest_of(request)
        # What the repository holds is looked up for those alone who may know it, as that takes a moment.
        if self._rights.holds(site, repository, authorization) and (
            digest is None or await self._membership.holds(site, repository, digest)
        ):
            return self._own(incoming, request, authorization)
        if incoming.method == "HEAD":
            return None  # it proves the same by itself: see `passed_through`
        return await self._proven(incoming, request, authorization)

    async def passed_through(
        self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob, answer: Answer
    ) -> None:
        """The registry answered the client itself, in its own name."""
        authorization = _only(incoming.headers.getall("Authorization", []))
        if authorization is None:
            return
        if answer.status in _REFUSED:
            self._rights.refused(incoming.site, request.repository, authorization)
        elif answer.status == 200 and incoming.method == "HEAD":
            self._rights.accepted(incoming.site, request.repository, authorization)
            claims = answer.headers.getall("Docker-Content-Digest", [])
            digest, claimed = _digest_of(request), claimed_digest(claims)
            shown = claimed if digest is None or claims else digest
            if shown is not None and digest in (None, shown):
                await self._membership.learn(incoming.site, request.repository, shown)

    async def _proven(
        self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob, authorization: str
    ) -> Requester | None:
        own = self._own(incoming, request, authorization)
        accept = CIMultiDict(("Accept", value) for value in incoming.headers.getall("Accept", []))
        try:
            response = await own.request(
                "HEAD", incoming.target, accept, follow_redirects=isinstance(request, Blob)
            )
        except (UpstreamUnreachable, UpstreamBroken):
            return None
        await response.close()
        if response.status in _REFUSED:
            self._rights.refused(incoming.site, request.repository, authorization)
        digest = _digest_of(request)
        shown = shown_by(response, digest)
        if response.status != 200 or (digest is not None and shown is None):
            return None
        self._rights.accepted(incoming.site, request.repository, authorization)
        if shown is not None:
            await self._membership.learn(incoming.site, request.repository, shown)
        return self._own(incoming, request, authorization, Told(incoming.target, response))

    def _own(
        self,
        incoming: Incoming,
        request: ManifestByTag | ManifestByDigest | Blob,
        authorization: str,
        told: Told | None = None,
    ) -> Requester:
        return Requester(
            site=incoming.site,
            repository=request.repository,
            authorization=authorization,
            own=True,
            told=told,
            upstream=self._upstream,
            anonymous=self._anonymous,
            signed_in=self._signed_in,
            limits=self._limits,
        )


def _only(values: list[str]) -> str | None:
    """The credential, if there is exactly one: of several nobody knows which one the registry would take."""
    return values[0] if len(values) == 1 and values[0] else None


def _digest_of(request: ManifestByTag | ManifestByDigest | Blob) -> Digest | None:
    return None if isinstance(request, ManifestByTag) else request.digest
