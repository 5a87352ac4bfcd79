"""Requests for one repository in the right name: a configured login's, the client's own, or nobody's.

What every client may read is asked for in the configured login's name first, that misses count on it;
where it cannot be used or does not help, the request is made as if there were none (I1). In the same way
a client's token that the registry refuses for a public repository, such as one that has expired, is done
without. What a client may read by its own right alone is asked for in its own name, and never through a
cache that ignores credentials (I6).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import CIMultiDict

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credential
from tidegate_proxy.upstreams.rate_limits import CLIENTS, NOBODY, TOO_MANY, RateLimits
from tidegate_proxy.upstreams.signed_in import NotSignedIn, SignedIn
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamResponse, UpstreamUnreachable

_REFUSED = frozenset({401, 403})


class Told:
    """The answer to a HEAD that was asked to prove something: who asks the same again is given it, once."""

    def __init__(self, target: str, response: UpstreamResponse) -> None:
        self._target = target
        self._response: UpstreamResponse | None = response

    def take(self, method: str, target: str) -> UpstreamResponse | None:
        if (method, target) != ("HEAD", self._target):
            return None
        response, self._response = self._response, None
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Sends reads for `repository`. Two that compare equal ask with the same right.

    `shared`: it is the configured login's right that every client uses here, not everyone's. `own`: it is the
    right of `authorization` alone.
    """

    site: Site
    repository: Repository
    authorization: str | None = field(repr=False)
    credential: Credential | None = None
    shared: bool = False
    own: bool = False
    told: Told | None = field(default=None, compare=False, repr=False)
    upstream: Upstream = field(compare=False, repr=False)
    anonymous: Anonymous = field(compare=False, repr=False)
    signed_in: SignedIn = field(compare=False, repr=False)
    limits: RateLimits = field(compare=False, repr=False)

    @property
    def must_wait(self) -> bool:
        """Whether nobody in whose name may be asked is to ask yet, by the registry's own word."""
        return all(self.limits.must_wait(self.site.registry, name) for name in self._names)

    @property
    def is_scarce(self) -> bool:
        """Whether little is left of the rate limit of each of them."""
        return all(self.limits.is_scarce(self.site.registry, name) for name in self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        """In whose names may be asked, in that order."""
        names = () if self.credential is None else (self.credential.username,)
        if self.authorization is not None:
            return (*names, CLIENTS)
        return names if self.shared else (*names, NOBODY)

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
        if self.own:
            return await self._in_own_name(method, target, sent, follow_redirects, patience_s)
        if self.credential is None or (self._is_limited(self.credential) and not self.shared):
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
            self._learn(self.credential.username, response)
            if response.status != TOO_MANY:
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

    async def _in_own_name(
        self,
        method: str,
        target: str,
        headers: CIMultiDict[str],
        follow_redirects: bool,
        patience_s: float | None,
    ) -> UpstreamResponse:
        """What a HEAD tells is a proof, so only who enforces rights may answer it; the rest was proven."""
        if self.told is not None and (known := self.told.take(method, target)) is not None:
            return known
        assert self.authorization is not None  # whoever has none has no right of its own
        headers["Authorization"] = self.authorization
        response = await self.upstream.request(
            self.site,
            method,
            target,
            headers,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            proven=method != "HEAD",
            private=True,
        )
        self._learn(CLIENTS, response)
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
            self._learn(CLIENTS, response)
            if response.status not in _REFUSED or self.shared:
                return response
            await response.close()
        response = await self.anonymous.request(
            self.site,
            self.repository,
            method,
            target,
            headers,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            proven=True,
        )
        self._learn(NOBODY, response)
        return response

    def _is_limited(self, credential: Credential) -> bool:
        return self.limits.must_wait(self.site.registry, credential.username)

    def _learn(self, name: str, response: UpstreamResponse) -> None:
        self.limits.learn(self.site.registry, name, response.status, response.headers)
