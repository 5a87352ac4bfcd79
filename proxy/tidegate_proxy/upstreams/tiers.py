"""All configured upstreams as one: the first that answers well does (FEATURES T2, T6).

A tier that hangs costs a request at most three seconds, before its head or in its body, and is dark then;
its answers of overload, and whatever a central tier refuses, are not given to a client while another upstream
may have a better one. Nothing here retries: a body that broke is resumed by whoever reads it, and comes here
again for the next byte.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.route import Errand, errand, route
from tidegate_proxy.upstreams.upstream import UpstreamResponse, UpstreamUnreachable

TIER_PATIENCE_S = 3.0
DOUBTED_FOR_S = 600.0
STATUSES = ("2xx", "3xx", "4xx", "5xx", "unreachable")
_MAX_SERVED = 1024


class Member(Protocol):
    """One of the upstreams: `failing` says why it gives no answer, `url` is "" for the registries."""

    @property
    def kind(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def failing(self) -> str: ...

    def dark(self, site: Site) -> bool: ...

    def gives_way(self, status: int) -> bool:
        """Whether another one is asked instead of giving this answer."""
        ...

    async def request(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        patience_s: float | None = None,
        own_authorization: str | None = None,
        proven: bool = False,
        silence_s: float | None = None,
    ) -> UpstreamResponse:
        """As `Upstream.request`; the answer's body breaks when it pauses for `silence_s`."""
        ...


class Tiers:
    """`Upstream` over its members, in the order configured; without a `direct` one, going there is denied."""

    kind = "tiers"

    def __init__(self, members: Sequence[Member], *, patience_s: float = TIER_PATIENCE_S) -> None:
        self.members = tuple(members)
        self.requests: Counter[tuple[str, str]] = Counter(
            {(member.kind, status): 0 for member in members for status in STATUSES}
        )
        """How many each kind answered, by one of STATUSES."""
        self._patience_s = patience_s
        self._denied = all(member.kind != "direct" for member in members)
        self._doubts = _Doubts()

    def dark(self, site: Site) -> bool:
        return all(member.dark(site) for member in self.members)

    def fetched(self, ended: FetchEnded) -> None:
        """A blob was fetched; where its bytes had another digest, somebody else is asked the next time."""
        if ended.ending == "mismatch":
            self._doubts.arise(str(ended.digest))
        elif ended.ending == "stored":
            self._doubts.end(str(ended.digest))

    async def request(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        patience_s: float | None = None,
        own_authorization: str | None = None,
        proven: bool = False,
        private: bool = False,
    ) -> UpstreamResponse:
        what, key = errand(method, target, proven=proven, private=private)
        asked = self._order(site, what, key, has_alternative=patience_s is not None)
        if body is not None:
            asked = asked[:1]  # it can be sent once
        loop = asyncio.get_running_loop()
        until = None if patience_s is None else loop.time() + patience_s
        causes = []
        for at, member in enumerate(asked):
            is_last = at == len(asked) - 1
            hurries = member.kind != "direct" and not is_last and body is None
            left_s = None if until is None else max(until - loop.time(), 0.0)
            try:
                response = await member.request(
                    site,
                    method,
                    target,
                    headers,
                    body=body,
                    follow_redirects=follow_redirects,
                    patience_s=self._share(left_s, len(asked) - at, hurries=hurries),
                    own_authorization=own_authorization,
                    proven=proven,
                    silence_s=self._patience_s if hurries and proven else None,
                )
            except UpstreamUnreachable as error:
                self.requests[(member.kind, "unreachable")] += 1
                causes.append(_told(member, error.why))
                continue
            self.requests[(member.kind, f"{response.status // 100}xx")] += 1
            has_the_word = is_last and (self._denied or member.kind == "direct")
            if not has_the_word and member.gives_way(response.status):
                await response.close()
                causes.append(_told(member, f"answers {response.status}"))
                continue
            if what in (Errand.CONTENT, Errand.PRIVATE) and method == "GET":
                self._doubts.served(key, member)
            return response
        if what is Errand.PING and self._content_flows(site):
            return _Pong()
        raise self._unreachable(site, causes)

    def _order(self, site: Site, what: Errand, key: str, *, has_alternative: bool) -> list[Member]:
        """Whom to ask, the dark ones last; nobody waits for those who has something better."""
        found = route(self.members, what, key)
        if len(found) == 1 and what is not Errand.PING:
            return found
        dark = [member for member in found if member.dark(site)]
        doubted = [member for member in found if self._doubts.about(key, member) and member not in dark]
        light = [member for member in found if member not in dark and member not in doubted]
        if (light and has_alternative) or (what is Errand.PING and self._content_flows(site)):
            return light
        return [*light, *doubted, *dark]

    def _share(self, left_s: float | None, candidates: int, *, hurries: bool) -> float | None:
        """How long one may take: those that come after a tier need time too.

        The registry itself is given all the time there is, or a slow one would be mistaken for a silent one.
        """
        if left_s is None:
            return self._patience_s if hurries else None
        return min(self._patience_s, left_s / candidates) if candidates > 1 else left_s

    def _content_flows(self, site: Site) -> bool:
        """Whether a tier would serve content of a registry that cannot be reached itself."""
        return any(member.kind != "direct" and not member.dark(site) for member in self.members)

    def _unreachable(self, site: Site, causes: Sequence[str]) -> UpstreamUnreachable:
        if not self._denied:
            return UpstreamUnreachable(site, "; ".join(causes))
        if not causes:  # a push, a login: nobody was asked
            causes = [_told(each, each.failing or "takes reads only") for each in self.members]
        cause = "; ".join(causes)
        step = 'start the tier, or take fallback = "deny" out of [[upstream]] and restart the agent'
        return UpstreamUnreachable(site, f"{cause}; going direct is denied", next_step=step)


def _told(member: Member, cause: str) -> str:
    return f"{member.kind} {member.url}: {cause}" if member.url else cause


class _Doubts:
    """Who served which digest, and whom not to ask for it for a while."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, set[str]] = OrderedDict()
        self._doubted: OrderedDict[tuple[str, str], float] = OrderedDict()

    def served(self, key: str, member: Member) -> None:
        if member.url:
            self._served.setdefault(key, set()).add(member.url)
            _bound(self._served)

    def arise(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        for url in self._served.pop(key, ()):
            self._doubted[(key, url)] = now + DOUBTED_FOR_S
            _bound(self._doubted)

    def end(self, key: str) -> None:
        self._served.pop(key, None)

    def about(self, key: str, member: Member) -> bool:
        if not self._doubted:
            return False
        return asyncio.get_running_loop().time() < self._doubted.get((key, member.url), 0.0)


def _bound(remembered: OrderedDict[Any, Any]) -> None:  # Any: bounding looks at neither
    while len(remembered) > _MAX_SERVED:
        remembered.popitem(last=False)


class _Pong:
    """The answer to a ping that nobody else gives, as an `UpstreamResponse`: no login is asked for."""

    status = 200
    headers = CIMultiDictProxy(
        CIMultiDict({"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"})
    )

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def read(self, limit_bytes: int) -> bytes | None:
        return b"{}" if limit_bytes >= 2 else None

    async def close(self) -> None:
        """Nothing is held."""
