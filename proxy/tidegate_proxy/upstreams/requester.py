"""Requests for one repository in the right name: a configured login's, the client's own, or nobody's.

What is asked for here may be read by every client. So the configured login goes first, that misses count on
it; where it cannot be used or does not help, the request is made as if there were none (I1). In the same way
a client's token that the registry refuses for a public repository, such as one that has expired, is done
without.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import CIMultiDict

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credential
from tidegate_proxy.upstreams.signed_in import NotSignedIn, SignedIn
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamResponse, UpstreamUnreachable

_REFUSED = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Sends reads for `repository`. Two that compare equal ask with the same right.

    `shared`: it is the configured login's right that every client uses here, not everyone's.
    """

    site: Site
    repository: Repository
    authorization: str | None = field(repr=False)
    credential: Credential | None = None
    shared: bool = False
    upstream: Upstream = field(compare=False, repr=False)
    anonymous: Anonymous = field(compare=False, repr=False)
    signed_in: SignedIn = field(compare=False, repr=False)

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        follow_redirects: bool = False,
        patience_s: float | None = None,
    ) -> UpstreamResponse:
        """Like `Upstream.request`; bodies are asked for without content coding."""
        sent = CIMultiDict(headers)
        sent["Accept-Encoding"] = "identity"
        if self.credential is None:
            return await self._without_login(method, target, sent, follow_redirects, patience_s)
        limited, failing = None, ""
        try:
            response = await self.signed_in.request(
                self.credential,
                self.site,
                self.repository,
                method,
                target,
                sent,
                follow_redirects=follow_redirects,
                patience_s=patience_s,
                proven=True,
            )
            if response.status != 429:
                return response
            limited = response
        except NotSignedIn as refusal:
            failing = str(refusal) if refusal.passing else ""
        try:
            response = await self._without_login(method, target, sent, follow_redirects, patience_s)
        except UpstreamUnreachable:
            if limited is None:
                raise
            return limited
        if response.status not in _REFUSED or not self.shared:
            if limited is not None:
                await limited.close()
            return response
        if limited is not None:
            await response.close()
            return limited
        if failing:
            await response.close()
            # That nobody else may read it is no news: what is cached stands, as when the registry is dark.
            raise UpstreamUnreachable(self.site, failing)
        return response

    async def _without_login(
        self,
        method: str,
        target: str,
        headers: CIMultiDict[str],
        follow_redirects: bool,
        patience_s: float | None,
    ) -> UpstreamResponse:
        if self.authorization is not None:
            response = await self.upstream.request(
                self.site,
                method,
                target,
                CIMultiDict(headers, Authorization=self.authorization),
                follow_redirects=follow_redirects,
                patience_s=patience_s,
                proven=True,
            )
            if response.status not in _REFUSED or self.shared:
                return response
            await response.close()
        return await self.anonymous.request(
            self.site,
            self.repository,
            method,
            target,
            headers,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            proven=True,
        )
