"""The ping, `GET /v2/`: by its answer clients decide whether and where to log in (distribution-spec, end-1).

It is the registry's own answer, but for two cases: while the registry is dark nobody could log in, so that a
challenge would end every pull; and where a login is shared nobody needs one.
"""

from multidict import CIMultiDict

from tidegate_proxy.oci.challenge import parse_challenges
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.passthrough import discard, pass_through
from tidegate_proxy.storage.index import Index
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.realm import token_service
from tidegate_proxy.upstreams.tokens import scheme_of
from tidegate_proxy.upstreams.upstream import FAILING, Upstream, UpstreamUnreachable

_PING_FIELDS = (("Content-Type", "application/json"), ("Docker-Distribution-Api-Version", "registry/2.0"))


class Pings:
    """Answers pings; `patience_s` bounds the wait for a registry where a client can be served without."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        anonymous: Anonymous,
        credentials: Credentials,
        index: Index,
        patience_s: float,
    ) -> None:
        self._upstream = upstream
        self._anonymous = anonymous
        self._credentials = credentials
        self._index = index
        self._patience_s = patience_s

    async def answer(self, incoming: Incoming) -> Answer:
        """The answer to a ping; raises UpstreamUnreachable when nobody can give one."""
        registry = incoming.site.namespace
        credential = self._credentials.shared(incoming.site)
        something_to_serve = await self._index.any_public(registry) or (
            credential is not None and await self._index.any_public(registry, credential.key)
        )
        if not something_to_serve:
            return await self._welcomed(incoming, await pass_through(self._upstream, incoming))
        if self._upstream.dark(incoming.site):
            return _dark_ping()
        try:
            answer = await pass_through(self._upstream, incoming, patience_s=self._patience_s)
        except UpstreamUnreachable:
            return _dark_ping()
        return _dark_ping() if answer.status in FAILING else await self._welcomed(incoming, answer)

    async def _welcomed(self, incoming: Incoming, answer: Answer) -> Answer:
        """A ping's answer, without the challenge that a client could not meet and need not.

        Where a login is shared nobody needs one, but clients must be able to pass what the ping asks of
        them. Most token services give a token to anybody: then the challenge stays, and who has a login
        of its own, for a push or for another repository, uses it. Where they are turned away, or are
        asked for a password, the ping is answered 200; with a Basic challenge, by which containers/image
        still uses a login when it has one.
        """
        if answer.status != 401 or "Authorization" in incoming.headers:
            return answer
        challenges = parse_challenges(answer.headers.getall("WWW-Authenticate", []))
        bearer = scheme_of(challenges, "bearer")
        service = token_service(incoming.site, bearer) if bearer is not None else None
        if service is not None:
            self._credentials.challenged(incoming.site, service)
        if self._credentials.shared(incoming.site) is None:
            return answer
        if bearer is not None and await self._anonymous.gives_tokens(incoming.site, bearer):
            return answer
        await discard(answer)
        basic = scheme_of(challenges, "basic") if bearer is None else None
        headers = CIMultiDict(_PING_FIELDS)
        if basic is not None:
            headers["WWW-Authenticate"] = str(basic)
        return Answer(status=200, headers=headers, body=b"{}")


def _dark_ping() -> Answer:
    return Answer(status=200, headers=CIMultiDict(_PING_FIELDS), body=b"{}", cache=Cache.STALE)
