"""Requests in the name of a configured login: with a token of its own, or with Basic at the registry itself.

Nothing here ends a pull: when the login cannot be used, or is not accepted, `NotSignedIn` says so and the
caller asks in another name (I1). A token that a registry refuses is replaced once; a repository that refuses
a fresh one is not asked again with this login for a minute.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

from multidict import CIMultiDict

from tidegate_proxy.oci.challenge import Challenge
from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.credentials import Credential, Credentials, Unusable
from tidegate_proxy.upstreams.realm import TokenService, token_service
from tidegate_proxy.upstreams.tokens import (
    Token,
    TokenRefused,
    Tokens,
    TokenServiceFailing,
    ask_for_token,
    challenges_of,
    scheme_of,
)
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamResponse, UpstreamUnreachable

REFUSAL_BELIEVED_FOR_S = 60.0
_MAX_REFUSALS = 4096
_Send = Callable[[str | None], Awaitable[UpstreamResponse]]


class NotSignedIn(Exception):
    """The request could not be made in the login's name, or not with success.

    `passing` when that says nothing about the login's rights: the token service is failing.
    """

    def __init__(self, cause: str, *, passing: bool = False) -> None:
        super().__init__(cause)
        self.passing = passing


class SignedIn:
    """Sends requests for one repository in the name of the login that is configured for the site."""

    def __init__(self, upstream: Upstream, credentials: Credentials, *, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._credentials = credentials
        self._clock = clock
        self._tokens = Tokens(clock)
        self._obtaining: SingleFlight[tuple[str, str, str], Token] = SingleFlight()
        self._basic: set[tuple[str, str]] = set()
        self._refused_until: dict[tuple[str, str, str], float] = {}

    async def close(self) -> None:
        """End what runs."""
        await self._obtaining.close()

    def dark(self, site: Site) -> bool:
        """As `Upstream.dark`."""
        return self._upstream.dark(site)

    async def request(
        self,
        credential: Credential,
        site: Site,
        repository: Repository,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        follow_redirects: bool = False,
        patience_s: float | None = None,
        proven: bool = False,
    ) -> UpstreamResponse:
        """Like `Upstream.request`, with the login; raises NotSignedIn too, for 401 and 403 among others."""
        await credential.look()  # a new password makes old refusals void
        key = (site.authority, str(repository), credential.key)
        if credential.waits:
            raise NotSignedIn(credential.complaint.cause)
        if self._clock() < self._refused_until.get(key, 0.0):
            raise NotSignedIn(f"{repository} refused {credential.key} a moment ago")

        bare = CIMultiDict(headers)
        bare.popall("Authorization", None)

        async def send(authorization: str | None) -> UpstreamResponse:
            return await self._upstream.request(
                site,
                method,
                target,
                bare,
                follow_redirects=follow_redirects,
                patience_s=patience_s,
                own_authorization=authorization,
                proven=proven,
            )

        try:
            async with asyncio.timeout(patience_s):
                response = await self._signed(credential, site, key, send)
        except TimeoutError as error:
            raise UpstreamUnreachable(site, "no answer in time") from error
        if response.status in (401, 403):
            await response.close()
            self._refuse(key)
            raise NotSignedIn(f"{site.authority} answers {response.status} to {credential.key}")
        return response

    async def _signed(
        self, credential: Credential, site: Site, key: tuple[str, str, str], send: _Send
    ) -> UpstreamResponse:
        if (site.authority, credential.key) in self._basic:
            return await self._with_basic(credential, site, send)
        token = self._tokens.get(*key)
        if token is None and credential.service_failing:
            raise NotSignedIn(credential.complaint.cause, passing=True)
        response = await send(_bearer(token))
        if response.status != 401:
            return response
        challenges = challenges_of(response)
        await response.close()
        self._tokens.drop(*key)
        if bearer := scheme_of(challenges, "bearer"):
            return await send(_bearer(await self._token(credential, site, key, bearer)))
        if scheme_of(challenges, "basic"):
            return await self._with_basic(credential, site, send)
        raise NotSignedIn(f"{site.authority} asks for neither a token nor a password")

    async def _with_basic(self, credential: Credential, site: Site, send: _Send) -> UpstreamResponse:
        if not credential.is_for_registry(site):
            raise NotSignedIn(f"{credential.key} is no login at {site.authority} itself")
        async with AsyncExitStack() as trying:
            if not credential.proven:
                await trying.enter_async_context(credential.trial)
            response = await send(await _authorization(credential))
            if response.status == 401:
                credential.doubted(site.authority, response.status)
            elif response.status < 400 or response.status == 404:
                self._basic.add((site.authority, credential.key))
                credential.accepted()
        return response

    async def _token(
        self, credential: Credential, site: Site, key: tuple[str, str, str], challenge: Challenge
    ) -> Token:
        service = token_service(site, challenge)
        if service is None:
            raise NotSignedIn(f"{site.authority} names no token service that can be asked")
        self._credentials.challenged(site, service)
        if not credential.is_for(site, service):
            raise NotSignedIn(credential.complaint.cause)
        token = await self._obtaining.run(key, lambda: self._ask(credential, service, key[1]))
        self._tokens.put(*key, token)
        return token

    async def _ask(self, credential: Credential, service: TokenService, repository: str) -> Token:
        host = service.site.authority
        async with AsyncExitStack() as trying:
            if not credential.proven:
                await trying.enter_async_context(credential.trial)
            authorization = await _authorization(credential)
            try:
                try:
                    token = await self._ask_for(service, repository, authorization)
                except TokenRefused as refusal:
                    # 401 is about the password. Others may be about the repository: without one they are not.
                    if refusal.status != 401 and not credential.proven:
                        await self._ask_for(service, "", authorization)
                        credential.accepted()
                    raise
            except TokenServiceFailing as error:
                credential.service_failed(str(error))
                raise NotSignedIn(str(error), passing=True) from error
            except TokenRefused as refusal:
                if not credential.proven or refusal.status == 401:
                    credential.refused(host, refusal.status)
                raise NotSignedIn(f"{host} answers {refusal.status} to {credential.key}") from refusal
            credential.accepted()
            return token

    async def _ask_for(self, service: TokenService, repository: str, authorization: str) -> Token:
        return await ask_for_token(
            self._upstream, service, repository, authorization=authorization, now=self._clock()
        )

    def _refuse(self, key: tuple[str, str, str]) -> None:
        if len(self._refused_until) >= _MAX_REFUSALS:
            self._refused_until.pop(next(iter(self._refused_until)))
        self._refused_until[key] = self._clock() + REFUSAL_BELIEVED_FOR_S
        self._tokens.drop(*key)


async def _authorization(credential: Credential) -> str:
    try:
        return await credential.authorization()
    except Unusable as error:
        raise NotSignedIn(error.complaint.cause) from error


def _bearer(token: Token | None) -> str | None:
    return None if token is None else f"Bearer {token.value}"
