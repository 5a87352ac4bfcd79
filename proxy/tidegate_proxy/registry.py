"""What a registry request gets: the path is read once, then the cache or the registry answers.

Reads of public repositories are answered from the store or fetched into it; everything else, and all
that is private, passes through uncached. While a registry is dark its ping is answered without a
challenge, because nobody could log in, and public content is served without a token; never while the
registry answers, or clients would stop sending credentials (DESIGN, section 6).
"""

import functools
from typing import assert_never

from multidict import CIMultiDict

from tidegate_proxy.anonymous import Anonymous
from tidegate_proxy.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.blobs import Blobs
from tidegate_proxy.digest import Digest
from tidegate_proxy.headers import content_length
from tidegate_proxy.hot_manifests import ReadyAnswer
from tidegate_proxy.index import Index
from tidegate_proxy.manifests import Manifests, NotServed
from tidegate_proxy.origin import OriginRefused, OriginUnreachable
from tidegate_proxy.passthrough import pass_through
from tidegate_proxy.public import Publicness
from tidegate_proxy.request_path import (
    Blob,
    ManifestByDigest,
    ManifestByTag,
    Other,
    Ping,
    Referrers,
    Request,
    RequestRefused,
    TagsList,
    Upload,
    Write,
    parse_request,
)
from tidegate_proxy.requester import Requester
from tidegate_proxy.site import Site
from tidegate_proxy.upstream import FAILING, Upstream, UpstreamUnreachable
from tidegate_proxy.verified import verified


class RegistryService:
    """Answers requests for the configured registries."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        anonymous: Anonymous,
        publicness: Publicness,
        manifests: Manifests,
        blobs: Blobs,
        index: Index,
        patience_s: float,
    ) -> None:
        self._upstream = upstream
        self._anonymous = anonymous
        self._publicness = publicness
        self._manifests = manifests
        self._blobs = blobs
        self._index = index
        self._patience_s = patience_s

    async def answer(self, incoming: Incoming) -> Answer:
        """The answer to one request; raises UpstreamUnreachable when nobody can give one."""
        try:
            request = parse_request(incoming.method, incoming.path, incoming.query)
        except RequestRefused as refused:
            headers = CIMultiDict({"Content-Type": "application/json"})
            return Answer(status=refused.error.status, headers=headers, body=refused.error.body())
        match request:
            case Ping():
                return await self._ping(incoming)
            case ManifestByTag() | ManifestByDigest() | Blob():
                return await self._read(incoming, request)
            case Write():
                return await self._write(incoming, request)
            case Referrers() | TagsList() | Upload() | Other():
                return await self.pass_through(incoming)
            case _:
                assert_never(request)

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        """The answer to a plain GET or HEAD that nobody has to be asked for and no disk to be read."""
        try:
            request = _parsed(method, target)
        except RequestRefused:
            return None
        if not isinstance(request, ManifestByDigest):
            return None
        if not self._publicness.known_public(site, request.repository):
            return None
        return self._manifests.at_hand(request.digest)

    async def pass_through(self, incoming: Incoming) -> Answer:
        """The registry's own answer; bytes asked for by digest still end only when they match it (I2)."""
        try:
            request: Request | None = parse_request(incoming.method, incoming.path, incoming.query)
        except Exception:  # noqa: BLE001 - refused or a bug of the parser: the registry's answer needs neither (I1)
            request = None
        answer = await pass_through(self._upstream, incoming, kind=_kind_of(request))
        digest = _digest_of(request)
        whole = incoming.method == "GET" and answer.status == 200
        coded = answer.headers.get("Content-Encoding", "identity").lower() != "identity"
        if digest is None or not whole or coded or isinstance(answer.body, bytes):
            return answer
        return Answer(
            status=answer.status,
            headers=answer.headers,
            body=verified(answer.body, digest, content_length(answer.headers)),
            cache=answer.cache,
            kind=answer.kind,
        )

    async def _ping(self, incoming: Incoming) -> Answer:
        something_to_serve = await self._index.any_public(incoming.site.registry)
        if not something_to_serve:
            return await self.pass_through(incoming)
        if self._upstream.dark(incoming.site):
            return _dark_ping()
        try:
            answer = await pass_through(self._upstream, incoming, patience_s=self._patience_s)
        except UpstreamUnreachable:
            return _dark_ping()
        return _dark_ping() if answer.status in FAILING else answer

    async def _read(self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob) -> Answer:
        repository = request.repository
        if not await self._publicness.is_public(incoming.site, repository, incoming.path):
            return await self.pass_through(incoming)
        requester = Requester(
            site=incoming.site,
            repository=repository,
            authorization=incoming.headers.get("Authorization"),
            upstream=self._upstream,
            anonymous=self._anonymous,
        )
        try:
            match request:
                case ManifestByTag():
                    return await self._manifests.by_tag(incoming, request, requester)
                case ManifestByDigest():
                    return await self._manifests.by_digest(incoming, request, requester)
                case Blob():
                    stored = self._blobs.stored(incoming, request.digest)
                    if incoming.method == "HEAD":
                        return await self._described(incoming, requester, stored)
                    if stored is not None:
                        return stored
                    return await self._blobs.fetched(incoming, request, requester)
                case _:
                    assert_never(request)
        except (NotServed, OriginRefused):
            return await self.pass_through(incoming)
        except OriginUnreachable as error:
            raise UpstreamUnreachable(incoming.site, error.cause) from error

    async def _described(self, incoming: Incoming, requester: Requester, stored: Answer | None) -> Answer:
        """HEAD of a blob. Who pushes skips what is there already: that *this* repository has it, only the
        registry knows; the store may hold it for another."""
        if stored is None:
            return await self._blobs.described(incoming, requester)
        if self._upstream.dark(incoming.site):
            return stored
        try:
            answer = await self._blobs.described(incoming, requester, patience_s=self._patience_s)
        except (UpstreamUnreachable, OriginRefused):
            return stored
        return stored if answer.status in FAILING or answer.status == 200 else answer

    async def _write(self, incoming: Incoming, request: Write) -> Answer:
        answer = await self.pass_through(incoming)
        if answer.status < 300 and isinstance(request.target, ManifestByTag):
            target = request.target
            await self._index.drop_tag(incoming.site.registry, str(target.repository), str(target.tag))
        return answer


@functools.lru_cache(maxsize=4096)
def _parsed(method: str, target: str) -> Request:
    path, _, query = target.partition("?")
    return parse_request(method, path, query)


def _dark_ping() -> Answer:
    headers = CIMultiDict(
        {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}
    )
    return Answer(status=200, headers=headers, body=b"{}", cache=Cache.STALE)


def _kind_of(request: Request | None) -> Kind:
    match request:
        case ManifestByTag() | ManifestByDigest():
            return Kind.MANIFEST
        case Blob():
            return Kind.BLOB
        case _:
            return Kind.OTHER


def _digest_of(request: Request | None) -> Digest | None:
    return request.digest if isinstance(request, ManifestByDigest | Blob) else None
