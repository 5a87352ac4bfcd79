"""An upstream whose reads are asked again when they fail for a moment (RFC 9110, 9.2.2: GET and HEAD may be).

One 5xx or 429 that is handed on ends a containerd, podman or skopeo pull, and no client asks again for a
manifest (docs/operations/upstream-faults.md). So a read is repeated before anything of its answer is given
away, each time with all upstreams in their order. Attempts and time are bounded (decision 0036); who has an
alternative waits for one repetition at most, and repeats nothing at a rate limit. Writes are never repeated.

A rate limit that names a short Retry-After is waited for, because containerd asks six times in 5 ms. What
was asked for in vain a moment ago is not repeated: its failure lasts, and whoever asks again, a client or the
next part of the agent, has waited for it already.

This module does not mend bodies that have begun (`fetching.healing` does).
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.rate_limit import retry_after_s
from tidegate_proxy.upstreams.upstream import FAILING, Upstream, UpstreamResponse, UpstreamUnreachable

LATEST_S = 90.0
"""After so long no answer is asked for again: a gateway may have waited for its own time-out."""
LATEST_UNREACHABLE_S = 5.0
"""The same where there was no answer at all: who waited for a connection in vain need not do so twice."""

LONGEST_WAIT_S = 5.0
"""What a rate limit may name to be waited for; longer ones are the client's to know."""

_FAILING_PAUSES_S = (0.1, 0.4, 1.5)
_LIMITED_PAUSES_S = (0.5,)
_REFUSED_PAUSES_S = (0.1,)
IN_VAIN_S = 10.0
"""How long it is known that repeating did not help."""
_MAX_IN_VAIN = 1024
_REPEATED = frozenset({"GET", "HEAD"})


def pause_s(
    status: int | None,
    attempt: int,
    *,
    with_token: bool,
    has_alternative: bool,
    retry_after_s: float | None = None,
) -> float | None:
    """How long to wait before asking again; None when that is no use.

    `status` is the answer's, None for no answer; `attempt` is that of the one that failed, counted from 0.
    A token may be refused once because a replica does not know it yet, or its clock is behind.
    """
    pauses: tuple[float, ...]
    if status is None:
        pauses = () if has_alternative else _FAILING_PAUSES_S
    elif status == 429:
        pauses = () if has_alternative else _limited_pauses_s(retry_after_s)
    elif status in FAILING:
        pauses = _FAILING_PAUSES_S[:1] if has_alternative else _FAILING_PAUSES_S
    elif status == 401 and with_token:
        pauses = _REFUSED_PAUSES_S
    else:
        pauses = ()
    return pauses[attempt] if attempt < len(pauses) else None


def _limited_pauses_s(retry_after_s: float | None) -> tuple[float, ...]:
    if retry_after_s is None:
        return _LIMITED_PAUSES_S
    return (max(retry_after_s, _LIMITED_PAUSES_S[0]),) * 2 if retry_after_s <= LONGEST_WAIT_S else ()


class Retrying:
    """`Upstream` over another one."""

    def __init__(self, upstream: Upstream) -> None:
        self.kind = upstream.kind
        self._upstream = upstream
        self._in_vain: OrderedDict[tuple[str, str], float] = OrderedDict()

    def dark(self, site: Site) -> bool:
        return self._upstream.dark(site)

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
        key = (site.authority, target)
        repeats = body is None and method in _REPEATED
        with_token = headers.get("Authorization", "").lower().startswith("bearer ")
        loop = asyncio.get_running_loop()
        began = loop.time()
        was_dark = self._upstream.dark(site)  # then somebody looks already: one try is enough here
        attempt = 0
        lasts = began < self._in_vain.get(key, 0.0)
        while True:
            left_s = None if patience_s is None else max(began + patience_s - loop.time(), 0.0)
            response, failure = None, None
            try:
                response = await self._upstream.request(
                    site,
                    method,
                    target,
                    headers,
                    body=body,
                    follow_redirects=follow_redirects,
                    patience_s=left_s,
                    own_authorization=own_authorization,
                    proven=proven,
                    private=private,
                )
                status, latest_s = response.status, LATEST_S
            except UpstreamUnreachable as error:
                if not repeats:
                    raise
                failure, status, latest_s = error, None, LATEST_UNREACHABLE_S
            pause = pause_s(
                status,
                attempt,
                with_token=with_token,
                has_alternative=patience_s is not None or (was_dark and response is None),
                retry_after_s=None
                if response is None
                else retry_after_s(response.headers, now=datetime.now(UTC)),
            )
            until = began + (latest_s if patience_s is None else patience_s)
            if not repeats or pause is None or lasts or loop.time() + pause >= until:
                if attempt > 0 and patience_s is None and (status is None or status in FAILING):
                    self._was_in_vain(key, loop.time())
                if response is None:
                    assert failure is not None  # there is one or the other
                    raise failure
                return response
            if response is not None:
                await response.close()
            await asyncio.sleep(pause)
            attempt += 1

    def _was_in_vain(self, key: tuple[str, str], now: float) -> None:
        self._in_vain[key] = now + IN_VAIN_S
        if len(self._in_vain) > _MAX_IN_VAIN:
            self._in_vain.popitem(last=False)
