"""What a registry request gets: the path is read once, then the cache or the registry answers.

Reads are answered from the store or fetched into it where the client may read the repository and that is
known to hold what is asked for (I6): every client reads public repositories and those of a shared login
(`share = "node"`), others by a right of its own (`private`). Everything else passes through uncached, with
the client's own Authorization; where that is not enough for a read, with the shared login's. While a
registry is dark its ping is answered without a challenge, because nobody could log in, and what every
client may read is served without a token; never while the registry answers, or clients would stop sending
credentials (DESIGN, section 6). The one exception is a registry with a shared login that turns clients
without one away at the ping (decision 0019).
"""

import functools
from dataclasses import replace
from typing import assert_never

from multidict import CIMultiDict

from tidegate_proxy.fetching.origin import OriginRefused, OriginUnreachable
from tidegate_proxy.fetching.verified import verified, verified_signed
from tidegate_proxy.headers import content_length, end_to_end
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.oci_error import OciError
from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.oci.request_path import (
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
from tidegate_proxy.oci.signed_manifest import is_signed
from tidegate_proxy.registry.answer import Answer, Incoming, Kind
from tidegate_proxy.registry.blobs import Blobs
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.registry.lists import Lists
from tidegate_proxy.registry.manifests import Manifests, NotServed, NotShown, Untold
from tidegate_proxy.registry.membership import Membership
from tidegate_proxy.registry.passthrough import as_answer, discard, pass_through
from tidegate_proxy.registry.ping import Pings
from tidegate_proxy.registry.private import Private
from tidegate_proxy.registry.proofs import Proofs
from tidegate_proxy.registry.public import Readable, Right, Shown
from tidegate_proxy.site import Site
from tidegate_proxy.storage.index import Index
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.content_coding import decoded, is_coded, is_gzipped
from tidegate_proxy.upstreams.credentials import Credential, Credentials
from tidegate_proxy.upstreams.rate_limits import RateLimits
from tidegate_proxy.upstreams.requester import Requester
from tidegate_proxy.upstreams.signed_in import NotSignedIn, SignedIn
from tidegate_proxy.upstreams.upstream import FAILING, Upstream, UpstreamUnreachable

_REFUSED = frozenset({401, 403})
_NO_PUSHES = OciError(
    "UNSUPPORTED",
    "pushes through this cache are switched off: push to the registry itself, or set [push] allow = true",
)


class RegistryService:
    """Answers requests for the configured registries."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        anonymous: Anonymous,
        signed_in: SignedIn,
        credentials: Credentials,
        readable: Readable,
        private: Private,
        membership: Membership,
        proofs: Proofs,
        manifests: Manifests,
        blobs: Blobs,
        lists: Lists,
        index: Index,
        limits: RateLimits,
        patience_s: float,
        pushes: bool = True,
    ) -> None:
        """Without `pushes`, whatever would change a repository is refused."""
        self._upstream = upstream
        self._anonymous = anonymous
        self._signed_in = signed_in
        self._credentials = credentials
        self._readable = readable
        self._private = private
        self._membership = membership
        self._members = index.members
        self._proofs = proofs
        self._manifests = manifests
        self._blobs = blobs
        self._lists = lists
        self._index = index
        self._limits = limits
        self._patience_s = patience_s
        self._pushes = pushes
        self._pings = Pings(
            upstream=upstream,
            anonymous=anonymous,
            credentials=credentials,
            index=index,
            patience_s=patience_s,
        )

    async def answer(self, incoming: Incoming) -> Answer:
        """The answer to one request; raises UpstreamUnreachable when nobody can give one."""
        try:
            request = parse_request(incoming.method, incoming.path, incoming.query)
        except RequestRefused as refused:
            return _refused(refused.error)
        if self._is_forbidden(request):
            return _refused(_NO_PUSHES)
        match request:
            case Ping():
                return await self._pings.answer(incoming)
            case ManifestByTag() | ManifestByDigest() | Blob():
                return await self._read(incoming, request)
            case Write():
                return await self._write(incoming, request)
            case Referrers() | TagsList():
                return await self._listed(incoming, request)
            case Upload() | Other():
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
        if not self._readable.known(site, request.repository):
            return None
        if not self._members.remembered(site.namespace, request.repository.name, request.digest):
            return None
        return self._manifests.at_hand(request.digest)

    async def pass_through(self, incoming: Incoming, *, proven: bool = False) -> Answer:
        """The registry's own answer; bytes asked for by digest still end only when they match it (I2).

        `proven` as for `Upstream.request`.
        """
        try:
            request: Request | None = parse_request(incoming.method, incoming.path, incoming.query)
        except Exception:  # noqa: BLE001 - refused or a bug of the parser: the registry's answer needs neither (I1)
            request = None
        if self._is_forbidden(request):
            return _refused(_NO_PUSHES)
        answer = await pass_through(self._upstream, incoming, kind=_kind_of(request), proven=proven)
        return _checked(incoming, request, answer)

    def _is_forbidden(self, request: Request | None) -> bool:
        return not self._pushes and isinstance(request, Upload | Write)

    async def _uncached(
        self,
        incoming: Incoming,
        repository: Repository,
        *,
        proves: ManifestByTag | ManifestByDigest | Blob | None = None,
    ) -> Answer:
        """A read that is not for the cache: in the client's own name, or else in the shared login's.

        What the registry answers in the client's own name may prove its right to what it `proves`.
        """
        if "Authorization" not in incoming.headers:
            return await self._signed_in_through(incoming, repository) or await self.pass_through(incoming)
        own = await self.pass_through(incoming)
        if proves is not None:
            await self._private.passed_through(incoming, proves, own)
        if self._credentials.shared(incoming.site) is None:
            return own
        if own.status not in _REFUSED:
            return own
        shared = await self._signed_in_through(incoming, repository)
        if shared is None:
            return own
        await discard(own)
        return shared

    async def _signed_in_through(self, incoming: Incoming, repository: Repository) -> Answer | None:
        """The registry's answer to the shared login; None when that is no better than any other."""
        credential = self._credentials.shared(incoming.site)
        if credential is None:
            return None
        request = parse_request(incoming.method, incoming.path, incoming.query)
        headers = end_to_end(incoming.headers.items())
        headers.popall("Expect", None)
        try:
            response = await self._signed_in.request(
                credential, incoming.site, repository, incoming.method, incoming.target, headers
            )
        except NotSignedIn:
            return None
        if response.status == 429:
            await response.close()
            return None
        return _checked(incoming, request, as_answer(response, _kind_of(request)))

    async def _read(self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob) -> Answer:
        right = await self._readable.by_everyone(incoming.site, request.repository, incoming.path)
        if right is None:
            return await self._read_by_own_right(incoming, request)
        requester = self._by_everyones_right(
            incoming,
            request.repository,
            right,
            authorization=incoming.headers.get("Authorization"),
            credential=self._credentials.of(incoming.site),
        )
        try:
            return await self._read_as(incoming, request, requester)
        except NotShown:
            # What everyone could read may be for some alone by now, of whom this client may be one.
            if await self._readable.by_everyone(incoming.site, request.repository, incoming.path) is None:
                return await self._read_by_own_right(incoming, request)
            return await self._uncached(incoming, request.repository)
        except Untold:
            return await self.pass_through(incoming, proven=True)

    async def _listed(self, incoming: Incoming, request: Referrers | TagsList) -> Answer:
        right = await self._readable.last(incoming.site, request.repository)
        if right is None or incoming.method != "GET":
            return await self._uncached(incoming, request.repository)
        # In no other name than that: what it is told must be everyone's.
        shared = self._credentials.shared(incoming.site) if right is Right.SHARED else None
        requester = self._by_everyones_right(incoming, request.repository, right, credential=shared)
        return await self._lists.answer(
            incoming, request, requester, lambda: self._uncached(incoming, request.repository)
        )

    def _by_everyones_right(
        self,
        incoming: Incoming,
        repository: Repository,
        right: Right,
        *,
        authorization: str | None = None,
        credential: Credential | None,
    ) -> Requester:
        return Requester(
            site=incoming.site,
            repository=repository,
            authorization=authorization,
            credential=credential,
            shared=right is Right.SHARED,
            upstream=self._upstream,
            anonymous=self._anonymous,
            signed_in=self._signed_in,
            limits=self._limits,
        )

    async def _read_by_own_right(
        self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob
    ) -> Answer:
        requester = await self._private.requester(incoming, request)
        if requester is None:
            return await self._uncached(incoming, request.repository, proves=request)
        return await self._read_as(incoming, request, requester)

    async def _read_as(
        self, incoming: Incoming, request: ManifestByTag | ManifestByDigest | Blob, requester: Requester
    ) -> Answer:
        """For a requester that may read the repository; raises NotShown or Untold."""
        try:
            match request:
                case ManifestByTag():
                    answer = await self._manifests.by_tag(incoming, request, requester)
                case ManifestByDigest():
                    if incoming.method == "GET":
                        await self._must_hold(requester, "manifests", request.digest)
                    answer = await self._manifests.by_digest(incoming, request, requester)
                case Blob():
                    if incoming.method == "HEAD":
                        return await self._described(incoming, request, requester)
                    await self._must_hold(requester, "blobs", request.digest)
                    stored = self._blobs.stored(incoming, request.digest)
                    return stored or await self._blobs.fetched(incoming, request, requester)
                case _:
                    assert_never(request)
            await self._membership.served(incoming.site, request.repository, answer)
            return answer
        except (NotShown, Untold):
            raise
        except (NotServed, OriginRefused):
            proves = request if requester.own else None
            return await self._uncached(incoming, request.repository, proves=proves)
        except OriginUnreachable as error:
            step = error.next_step or "tidegate status"
            raise UpstreamUnreachable(incoming.site, error.cause, next_step=step) from error

    async def _must_hold(self, requester: Requester, kind: str, digest: Digest) -> None:
        """Raises NotShown or Untold where the repository does not, as far as these readers may know."""
        match await self._proofs.shown(requester, kind, digest):
            case Shown.NO:
                raise NotShown
            case Shown.UNTOLD:
                raise Untold

    async def _described(self, incoming: Incoming, request: Blob, requester: Requester) -> Answer:
        """HEAD of a blob. Who pushes skips what is there already: that *this* repository has it, only the
        registry knows for sure; what is known of that is good enough where it does not answer."""
        held = await self._proofs.known(requester, request.digest)
        stored = self._blobs.stored(incoming, request.digest) if held else None
        if stored is None:
            return await self._blobs.described(incoming, requester)
        if not requester.own and self._upstream.dark(incoming.site):
            return stored
        try:
            answer = await self._blobs.described(incoming, requester, patience_s=self._patience_s)
        except (UpstreamUnreachable, OriginRefused):
            if requester.own:
                raise
            return stored
        if answer.status in FAILING and requester.own:
            return answer
        return stored if answer.status in FAILING or answer.status == 200 else answer

    async def _write(self, incoming: Incoming, request: Write) -> Answer:
        answer = await self.pass_through(incoming)
        target = request.target
        if answer.status < 300 and isinstance(target, ManifestByTag):
            await self._index.drop_tag(incoming.site.registry, str(target.repository), str(target.tag))
        elif (
            answer.status < 300
            and incoming.method == "DELETE"
            and isinstance(target, ManifestByDigest | Blob)
        ):
            await self._membership.forget(incoming.site, target.repository, target.digest)
        return answer


@functools.lru_cache(maxsize=4096)
def _parsed(method: str, target: str) -> Request:
    path, _, query = target.partition("?")
    return parse_request(method, path, query)


def _checked(incoming: Incoming, request: Request | None, answer: Answer) -> Answer:
    """The same answer; bytes asked for by digest end only when they match it (I2)."""
    digest = _digest_of(request)
    whole = incoming.method == "GET" and answer.status == 200
    if digest is None or not whole or isinstance(answer.body, bytes):
        return answer
    if is_signed(answer.headers.get("Content-Type", "")):
        return replace(answer, body=verified_signed(answer.body, digest))
    if is_gzipped(answer.headers):
        headers = CIMultiDict(answer.headers)
        headers.popall("Content-Encoding")
        headers.popall("Content-Length", None)
        return replace(answer, headers=headers, body=verified(decoded(answer.body), digest, None))
    if is_coded(answer.headers):
        return answer
    return replace(answer, body=verified(answer.body, digest, content_length(answer.headers)))


def _refused(error: OciError) -> Answer:
    headers = CIMultiDict({"Content-Type": "application/json"})
    return Answer(status=error.status, headers=headers, body=error.body())


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
