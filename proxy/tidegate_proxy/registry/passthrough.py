"""The registry's own answer, untouched: for everything a cache has no business with (FEATURES C16, C18).

Bodies stream in both directions without being held, redirects go to the client as they are, and no
header but the hop-by-hop ones is taken away.
"""

from collections.abc import AsyncIterator

from tidegate_proxy.headers import end_to_end
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamResponse


async def pass_through(
    upstream: Upstream,
    incoming: Incoming,
    *,
    kind: Kind = Kind.OTHER,
    patience_s: float | None = None,
    proven: bool = False,
) -> Answer:
    """Send the request on as it came and answer what comes back; raises UpstreamUnreachable."""
    headers = end_to_end(incoming.headers.items())
    headers.popall("Expect", None)  # answered by us already
    response = await upstream.request(
        incoming.site,
        incoming.method,
        incoming.target,
        headers,
        body=incoming.body,
        patience_s=patience_s,
        proven=proven,
    )
    return as_answer(response, kind)


def as_answer(response: UpstreamResponse, kind: Kind) -> Answer:
    """A registry's answer as it is; its body must be read to an end or closed."""
    return Answer(
        status=response.status,
        headers=end_to_end(response.headers.items()),
        body=streamed(response),
        cache=Cache.BYPASS,
        kind=kind,
    )


async def streamed(response: UpstreamResponse) -> AsyncIterator[bytes]:
    """An answer's body as it arrives; the answer is closed at the end, however that comes."""
    try:
        async for chunk in response.chunks():
            yield chunk
    finally:
        await response.close()
