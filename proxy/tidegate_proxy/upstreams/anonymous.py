"""Requests in nobody's name: a registry's public content, with an anonymous token where it wants one.

Tokens are kept until shortly before they expire and never leave this module but in a request to the registry
that asked for them.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from multidict import CIMultiDict

from tidegate_proxy.oci.challenge import Challenge
from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.site import Site
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

_NOBODY = ""
_UNKNOWN_REPOSITORY = "tidegate/nobody"
_GENEROSITY_BELIEVED_FOR_S = 3600.0
_MAX_SERVICES = 256


class _Send(Protocol):
    """The request, with or without a token of ours."""

    def __call__(self, *, own_authorization: str | None) -> Awaitable[UpstreamResponse]: ...


class Anonymous:
    """Sends requests for one repository without anyone's credentials."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        clock: Callable[[], float],
        challenged: Callable[[Site, TokenService], None] = lambda _site, _service: None,
    ) -> None:
        """`challenged` is told which token service a site names."""
        self._upstream = upstream
        self._clock = clock
        self._challenged = challenged
        self._tokens = Tokens(clock)
        self._obtaining: SingleFlight[tuple[str, str], Token | None] = SingleFlight()
        self._generous: dict[tuple[str, str], tuple[bool, float]] = {}

    async def close(self) -> None:
        """End what runs."""
        await self._obtaining.close()

    def dark(self, site: Site) -> bool:
        """As `Upstream.dark`."""
        return self._upstream.dark(site)

    async def request(
        self,
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
        """Like `Upstream.request`; a 401 that offers anonymous tokens is answered with one, once."""
        bare = CIMultiDict(headers)
        bare.popall("Authorization", None)
        send = functools.partial(
            self._upstream.request,
            site,
            method,
            target,
            bare,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            proven=proven,
        )
        try:
            async with asyncio.timeout(patience_s):
                return await self._request(site, repository, send)
        except TimeoutError as error:
            raise UpstreamUnreachable(site, "no answer in time") from error

    async def gives_tokens(self, site: Site, challenge: Challenge) -> bool:
        """Whether the token service that the site names gives a token to who has no login.

        Most give one that is good for nothing but what is public; others turn such a client away. Asked for
        is a repository that there is not, which no service tells from a private one.
        """
        service = token_service(site, challenge)
        if service is None:
            return False
        key = (service.site.authority, service.path)
        known = self._generous.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        try:
            await self._obtain_from(service, _UNKNOWN_REPOSITORY)
        except TokenServiceFailing:
            return False
        except TokenRefused:
            gives = False
        else:
            gives = True
        self._is_generous(service, gives)
        return gives

    def _is_generous(self, service: TokenService, gives: bool) -> None:
        if len(self._generous) >= _MAX_SERVICES:
            self._generous.pop(next(iter(self._generous)))
        believed_until = self._clock() + _GENEROSITY_BELIEVED_FOR_S
        self._generous[(service.site.authority, service.path)] = (gives, believed_until)

    async def _request(self, site: Site, repository: Repository, send: "_Send") -> UpstreamResponse:
        known = self._tokens.get(site.authority, str(repository), _NOBODY)
        response = await send(own_authorization=_authorization(known))
        if response.status != 401:
            return response
        challenge = scheme_of(challenges_of(response), "bearer")
        service = token_service(site, challenge) if challenge is not None else None
        if service is None:
            return response
        self._challenged(site, service)
        token = await self._obtain(service, site, repository)
        if token is None:
            return response
        await response.close()
        return await send(own_authorization=_authorization(token))

    async def _obtain(self, service: TokenService, site: Site, repository: Repository) -> Token | None:
        key = (site.authority, str(repository))

        async def obtain() -> Token | None:
            try:
                return await self._obtain_from(service, str(repository))
            except TokenRefused:
                self._is_generous(service, False)
            except TokenServiceFailing:
                pass
            return None

        token = await self._obtaining.run(key, obtain)
        if token is not None:
            self._tokens.put(*key, _NOBODY, token)
        return token

    async def _obtain_from(self, service: TokenService, repository: str) -> Token:
        return await ask_for_token(self._upstream, service, repository, authorization=None, now=self._clock())


def _authorization(token: Token | None) -> str | None:
    return None if token is None else f"Bearer {token.value}"
