"""Requests in nobody's name: a registry's public content, with an anonymous token where it wants one.

The token flow is the distribution project's (docs/spec/auth/token.md): a 401 names realm, service and
scope; the realm hands a token for them to anyone. Tokens are kept until shortly before they expire and
never leave this module but in a request to the registry that asked for them.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlencode, urlsplit

import msgspec
from multidict import CIMultiDict

from tidegate_proxy.challenge import Challenge, parse_challenges
from tidegate_proxy.reference import Repository
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.site import Site
from tidegate_proxy.upstream import Upstream, UpstreamBroken, UpstreamResponse, UpstreamUnreachable

_TOKEN_ANSWER_LIMIT_BYTES = 256 * 1024
_DEFAULT_LIFE_S = 60  # the token specification's default for a missing expires_in
_MAX_TOKENS = 4096


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: int = _DEFAULT_LIFE_S


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    usable_until: float


class _Send(Protocol):
    """The request, with or without a token of ours."""

    def __call__(self, *, own_authorization: str | None) -> Awaitable[UpstreamResponse]: ...


class Anonymous:
    """Sends requests for one repository without anyone's credentials."""

    def __init__(self, upstream: Upstream, *, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._tokens: dict[tuple[str, str], _Token] = {}
        self._obtaining: SingleFlight[tuple[str, str], _Token | None] = SingleFlight()

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

    async def _request(self, site: Site, repository: Repository, send: "_Send") -> UpstreamResponse:
        key = (site.authority, str(repository))
        known = self._tokens.get(key)
        if known is not None and known.usable_until <= self._clock():
            known = None
        response = await send(own_authorization=_authorization(known))
        if response.status != 401:
            return response
        challenge = _bearer(response)
        if challenge is None:
            return response
        token = await self._obtain(key, site, repository, challenge)
        if token is None:
            return response
        await response.close()
        return await send(own_authorization=_authorization(token))

    async def _obtain(
        self, key: tuple[str, str], site: Site, repository: Repository, challenge: Challenge
    ) -> _Token | None:
        token = await self._obtaining.run(key, lambda: self._fetch_token(site, repository, challenge))
        if token is not None:
            if len(self._tokens) >= _MAX_TOKENS:
                self._tokens.pop(next(iter(self._tokens)))
            self._tokens[key] = token
        return token

    async def _fetch_token(self, site: Site, repository: Repository, challenge: Challenge) -> _Token | None:
        realm = urlsplit(challenge.parameters.get("realm", ""))
        if realm.hostname is None or realm.scheme not in ("https", site.scheme):
            return None
        issuer = Site(
            registry=site.registry,
            host=realm.hostname,
            port=realm.port or (443 if realm.scheme == "https" else 80),
            scheme=realm.scheme,
        )
        scope = {"scope": f"repository:{repository}:pull"}
        if service := challenge.parameters.get("service"):
            scope["service"] = service
        query = "&".join(part for part in (realm.query, urlencode(scope)) if part)
        try:
            response = await self._upstream.request(
                issuer, "GET", f"{realm.path or '/'}?{query}", {"Accept-Encoding": "identity"}
            )
            try:
                body = await response.read(_TOKEN_ANSWER_LIMIT_BYTES) if response.status == 200 else None
            finally:
                await response.close()
        except (UpstreamUnreachable, UpstreamBroken):
            return None
        return _parse_token(body, self._clock()) if body is not None else None


def _parse_token(body: bytes, now: float) -> _Token | None:
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    value = answer.token or answer.access_token
    if not value or not value.isprintable():
        return None
    return _Token(value, now + 0.8 * max(answer.expires_in, 0))


def _bearer(response: UpstreamResponse) -> Challenge | None:
    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
    return next((found for found in challenges if found.scheme.lower() == "bearer"), None)


def _authorization(token: _Token | None) -> str | None:
    return None if token is None else f"Bearer {token.value}"
