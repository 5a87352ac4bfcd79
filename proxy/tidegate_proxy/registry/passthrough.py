"""The registry's own answer, untouched: for everything a cache has no business with (FEATURES C16, C18).

Bodies stream in both directions without being held, redirects go to the client as they are, and no
header but the hop-by-hop ones is taken away. A short body that is read is fetched whole before its head goes
out, so that one which breaks can be asked for again: a manifest that is cut ends every client's pull.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from tidegate_proxy.headers import content_length, end_to_end
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.upstreams.upstream import (
    Upstream,
    UpstreamBroken,
    UpstreamResponse,
    UpstreamUnreachable,
)

SHORT_BYTES = 256 * 1024
_ATTEMPTS = 3


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
    for left in reversed(range(_ATTEMPTS)):
        response = await upstream.request(
            incoming.site,
            incoming.method,
            incoming.target,
            headers,
            body=incoming.body,
            patience_s=patience_s,
            proven=proven,
        )
        if incoming.method != "GET" or incoming.body is not None or not _is_short(response):
            break
        try:
            body = await response.read(SHORT_BYTES)
        except UpstreamBroken as error:
            if not left:
                raise UpstreamUnreachable(incoming.site, error.cause) from error
            continue
        finally:
            await response.close()
        return replace(as_answer(response, kind), body=_at_once(body or b""))
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


def _is_short(response: UpstreamResponse) -> bool:
    length = content_length(response.headers)
    return response.status == 200 and length is not None and length <= SHORT_BYTES


async def _at_once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def streamed(response: UpstreamResponse) -> AsyncIterator[bytes]:
    """An answer's body as it arrives; the answer is closed at the end, however that comes."""
    try:
        async for chunk in response.chunks():
            yield chunk
    finally:
        await response.close()


async def discard(answer: Answer) -> None:
    """Let go of an answer that nobody gets."""
    if not isinstance(answer.body, bytes):
        async for _ in answer.body:
            break
        if isinstance(answer.body, AsyncGenerator):
            await answer.body.aclose()
