"""What can be wrong with `[[upstream]]` tables beyond the forms of their keys; pure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tidegate_core.errors import UsageError

if TYPE_CHECKING:
    from tidegate_agent.config import UpstreamConfig  # which imports this module


def check_upstreams(upstreams: "Sequence[UpstreamConfig]", source: str) -> None:
    """UsageError for an upstream whose keys do not fit its kind, or that is there twice."""
    seen: set[tuple[str, str]] = set()
    for at, upstream in enumerate(upstreams):
        key = f"upstream[{at}]"
        named = (upstream.kind, str(upstream.url or ""))
        if named in seen:
            raise UsageError(f"{source}: `{key}` repeats {' '.join(named)}", next_step="remove one of them")
        seen.add(named)
        for fault, step in _faults_of(upstream, key):
            raise UsageError(f"{source}: `{key}` of kind {upstream.kind!r} {fault}", next_step=step)
    if any(each.kind == "direct" for each in upstreams) and any(
        each.fallback == "deny" for each in upstreams
    ):
        cause = f'{source}: one [[upstream]] is of kind "direct", another says fallback = "deny"'
        raise UsageError(cause, next_step="remove one of them")


def _faults_of(upstream: "UpstreamConfig", key: str) -> Iterable[tuple[str, str]]:
    """What is wrong with one upstream, and what to do about it."""
    if upstream.kind == "direct":
        for name in ("url", "ca", "certificate", "key"):
            if getattr(upstream, name) is not None:
                yield f"has a {name}", f"remove `{key}.{name}`"
        if upstream.fallback == "deny":
            yield 'says fallback = "deny"', f"remove `{key}.fallback`, or the table"
        return
    if upstream.url is None:
        yield "has no url", f"add `{key}.url`"
        return
    if upstream.kind == "connect":
        if upstream.url.scheme != "http" or upstream.url.path:
            yield f"has the url {upstream.url}", f"write `{key}.url` as http://HOST:PORT"
        for name in ("certificate", "key"):
            if getattr(upstream, name) is not None:
                yield f"has a {name}", "put user and password into its url, if it wants to know who asks"
    if (upstream.certificate is None) != (upstream.key is None):
        missing = "certificate" if upstream.certificate is None else "key"
        yield f"has no {missing}", f"add `{key}.{missing}`"
    if upstream.url.scheme == "http" and upstream.kind == "central" and (upstream.ca or upstream.certificate):
        yield "is not spoken to over TLS", f"write `{key}.url` as https://HOST:PORT"
