"""Tokens: asked for at a registry's token service, kept until shortly before they expire.

The flow is the distribution project's (docs/spec/auth/token.md): a 401 names realm, service and scope; the
realm hands a token for them to anyone, or to who proves a login with Basic (RFC 7617). No token and no
password leaves here but in a request; errors tell status and host, never a body. This module does not decide
who may be asked, nor with what.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from tidegate_proxy.oci.challenge import Challenge, parse_challenges
from tidegate_proxy.upstreams.realm import TokenService
from tidegate_proxy.upstreams.upstream import (
    FAILING,
    Upstream,
    UpstreamBroken,
    UpstreamResponse,
    UpstreamUnreachable,
)

ANSWER_LIMIT_BYTES = 256 * 1024
TOKEN_LIMIT_CHARACTERS = 32 * 1024
DEFAULT_LIFE_S = 60  # the token specification's default for a missing expires_in
LONGEST_LIFE_S = 3600
PATIENCE_S = 5.0
"""How long a token service may take for everything."""
_PAUSES_S = (0.1, 0.4)
_MAX_TOKENS = 4096


class TokenRefused(Exception):
    """The token service answered and gave no token; `status` is its word."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the token service answered {status}")
        self.status = status


class TokenServiceFailing(Exception):
    """The token service gave no usable answer: not reachable, a server error, too many requests."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token and until when it is used, on the clock of who asked for it."""

    value: str = field(repr=False)
    usable_until: float


class Tokens:
    """The tokens at hand, by site, repository and whose they are; the oldest go first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tokens: OrderedDict[tuple[str, str, str], Token] = OrderedDict()

    def get(self, authority: str, repository: str, owner: str) -> Token | None:
        """The token, if it has not expired."""
        key = (authority, repository, owner)
        token = self._tokens.get(key)
        if token is not None and token.usable_until <= self._clock():
            del self._tokens[key]
            return None
        return token

    def put(self, authority: str, repository: str, owner: str, token: Token) -> None:
        """Keep a token."""
        self._tokens[(authority, repository, owner)] = token
        if len(self._tokens) > _MAX_TOKENS:
            self._tokens.popitem(last=False)

    def drop(self, authority: str, repository: str, owner: str) -> None:
        """A token was refused."""
        self._tokens.pop((authority, repository, owner), None)


async def ask_for_token(
    upstream: Upstream, service: TokenService, repository: str, *, authorization: str | None, now: float
) -> Token:
    """A token to pull from the repository; a failing service is asked again, PATIENCE_S in all.

    Raises TokenRefused or TokenServiceFailing.
    """
    host = service.site.authority
    try:
        async with asyncio.timeout(PATIENCE_S):
            for pause_s in (*_PAUSES_S, None):
                try:
                    return await _ask(upstream, service, repository, authorization, now)
                except TokenServiceFailing:
                    if pause_s is None:
                        raise
                await asyncio.sleep(pause_s)
    except TimeoutError as error:
        raise TokenServiceFailing(f"{host} does not answer in time") from error
    raise AssertionError("unreachable")


async def _ask(
    upstream: Upstream, service: TokenService, repository: str, authorization: str | None, now: float
) -> Token:
    host = service.site.authority
    try:
        response = await upstream.request(
            service.site,
            "GET",
            service.target(repository),
            {"Accept-Encoding": "identity"},
            own_authorization=authorization,
        )
        try:
            if response.status in FAILING:
                raise TokenServiceFailing(f"{host} answers {response.status}")
            if response.status != 200:
                raise TokenRefused(response.status)
            body = await response.read(ANSWER_LIMIT_BYTES)
        finally:
            await response.close()
    except (UpstreamUnreachable, UpstreamBroken) as error:
        # Not its text: a cut answer's could hold a piece of a token.
        raise TokenServiceFailing(f"{host} cannot be reached") from error
    token = parse_token(body, now) if body is not None else None
    if token is None:
        raise TokenServiceFailing(f"{host} answers something that is no token")
    return token


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: int | float | None = None


def parse_token(body: bytes, now: float) -> Token | None:
    """The token of a token service's answer; None when there is none."""
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    value = answer.token or answer.access_token
    if not value.isascii() or not value.isprintable() or not 0 < len(value) <= TOKEN_LIMIT_CHARACTERS:
        return None
    life_s = DEFAULT_LIFE_S if answer.expires_in is None else min(answer.expires_in, LONGEST_LIFE_S)
    return Token(value, now + 0.8 * max(life_s, 0))


def challenges_of(response: UpstreamResponse) -> tuple[Challenge, ...]:
    """What a 401 asks for."""
    return parse_challenges(response.headers.getall("WWW-Authenticate", []))


def scheme_of(challenges: Iterable[Challenge], scheme: str) -> Challenge | None:
    """The first challenge of that scheme."""
    return next((found for found in challenges if found.scheme.lower() == scheme), None)
