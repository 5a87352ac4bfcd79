"""A request as it came in and the answer to give, as values between HTTP framing and registry semantics."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum

from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_proxy.site import Site


class Cache(StrEnum):
    """Where an answer's bytes came from: the value of X-Tidegate-Cache."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    REVALIDATED = "revalidated"
    BYPASS = "bypass"


class Kind(StrEnum):
    """What was asked for: the `type` label of distribution's metrics, and the rest."""

    MANIFEST = "manifest"
    BLOB = "blob"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One request of a client; `target` is path and query as they stood on the wire."""

    site: Site
    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: AsyncIterator[bytes] | None = None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def reads(self) -> bool:
        return self.method in ("GET", "HEAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, header fields and body. A streamed body that raises must end with the connection cut.

    `body` is whole bytes, or pieces in order; for a HEAD it is empty and Content-Length stands in
    `headers`.
    """

    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes | AsyncIterator[bytes | memoryview] = b""
    cache: Cache = Cache.BYPASS
    kind: Kind = Kind.OTHER

    def labelled(self) -> CIMultiDict[str]:
        """The header fields, and those that say where the bytes came from.

        docker-registry-proxy's users look for the last two.
        """
        headers = CIMultiDict(self.headers)
        headers["X-Tidegate-Cache"] = self.cache.value
        headers["X-Docker-Registry-Proxy-Cache-Upstream-Status"] = self.cache.value.upper()
        headers["X-Docker-Registry-Proxy-Cache-Type"] = self.kind.value
        return headers
