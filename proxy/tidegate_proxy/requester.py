"""Requests for one repository in the right name: the client's own, or nobody's when it sent none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import CIMultiDict

from tidegate_proxy.anonymous import Anonymous
from tidegate_proxy.reference import Repository
from tidegate_proxy.site import Site
from tidegate_proxy.upstream import Upstream, UpstreamResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Sends reads for a `repository` that may be read. Two that compare equal ask with the same right."""

    site: Site
    repository: Repository
    authorization: str | None = field(repr=False)
    upstream: Upstream = field(compare=False, repr=False)
    anonymous: Anonymous = field(compare=False, repr=False)

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
        if self.authorization is None:
            return await self.anonymous.request(
                self.site,
                self.repository,
                method,
                target,
                sent,
                follow_redirects=follow_redirects,
                patience_s=patience_s,
                proven=True,
            )
        sent["Authorization"] = self.authorization
        return await self.upstream.request(
            self.site,
            method,
            target,
            sent,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            proven=True,
        )
