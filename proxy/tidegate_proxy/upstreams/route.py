"""Which upstreams a request may go to, and which of them first: pure.

Content that whoever asks may read comes from any upstream, in the configured order; several of one kind
share it, each digest having its home (FEATURES T6). What only some may read never passes a connect tier,
which may keep it and ignore credentials; central tiers enforce who may read. All else is between a client
and its registry: logins, proofs, pushes. It goes there directly, or a cache that ignores credentials could
answer for the registry (DESIGN, I6). A central tier is asked for proofs when direct fails. Where going
direct is denied, connect tiers carry all of it.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol, TypeVar

from tidegate_proxy.oci.request_path import (
    Blob,
    ManifestByDigest,
    ManifestByTag,
    Ping,
    Referrers,
    RequestRefused,
    TagsList,
    parse_request,
)
from tidegate_proxy.upstreams.rendezvous import ranked


class Errand(Enum):
    """What a request is for, as far as its way matters."""

    CONTENT = "content"
    """A read by somebody who is known to have the right."""
    PRIVATE = "private"
    """The same, of something that not everybody may read."""
    JUDGED = "judged"
    """A read whose answer tells who has the right."""
    PING = "ping"
    OTHER = "other"
    """Pushes, token services, and what nobody knows."""


class Named(Protocol):
    """An upstream as far as ordering goes."""

    @property
    def kind(self) -> str: ...

    @property
    def url(self) -> str: ...


N = TypeVar("N", bound=Named)


def errand(method: str, target: str, *, proven: bool, private: bool = False) -> tuple[Errand, str]:
    """What the request is for, and the key by which equal tiers share it."""
    path, _, query = target.partition("?")
    try:
        request = parse_request(method, path, query)
    except RequestRefused:
        return Errand.OTHER, path
    match request:
        case ManifestByDigest() | Blob():
            key = str(request.digest)
        case ManifestByTag() | Referrers() | TagsList():
            key = path
        case Ping():
            return Errand.PING, path
        case _:
            return Errand.OTHER, path
    if not proven:
        return Errand.JUDGED, key
    return (Errand.PRIVATE if private else Errand.CONTENT), key


def route(upstreams: Sequence[N], what: Errand, key: str) -> list[N]:
    """Who may be asked, in order; without a `direct` among `upstreams`, going there is denied."""
    denied = all(each.kind != "direct" for each in upstreams)
    match what:
        case Errand.CONTENT:
            return _shared(upstreams, key)
        case Errand.JUDGED | Errand.PRIVATE if denied:
            return _shared(upstreams, key)
        case Errand.PRIVATE:
            return _shared([each for each in upstreams if each.kind != "connect"], key)
        case Errand.JUDGED:
            kinds: tuple[str, ...] = ("direct", "central")
        case _:
            kinds = ("connect",) if denied else ("direct",)
    return _shared([each for kind in kinds for each in upstreams if each.kind == kind], key)


def _shared(upstreams: Sequence[N], key: str) -> list[N]:
    """By kind, in the order in which kinds appear; within a kind by rendezvous."""
    found: list[N] = []
    for kind in dict.fromkeys(each.kind for each in upstreams):
        by_url = {each.url: each for each in upstreams if each.kind == kind}
        found += by_url.values() if len(by_url) == 1 else [by_url[url] for url in ranked(key, list(by_url))]
    return found
