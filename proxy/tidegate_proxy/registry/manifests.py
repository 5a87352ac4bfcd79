"""Manifests: immutable by digest, revalidated by tag.

A tag is believed for as long as its tier says (FEATURES C5), and costs one HEAD at each use after that, which
no registry counts as a pull (C6); those who ask at the same time share it. When the registry does not answer,
or answers 429 or a server error, or has little of its rate limit left, the last variant that the client
accepts is served stale, up to `stale_max` (C7, C19). What a registry sends is stored only when it hashes to
the digest asked for, or to the one it claims. Nothing leaves the store under a repository that is not known
to hold it (I6), and a tag is remembered for what its readers may rely on; who reads by a right of its own is
never served stale.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from multidict import CIMultiDict

from tidegate_proxy.headers import content_length, descriptive
from tidegate_proxy.oci.accept import Accept
from tidegate_proxy.oci.condition import entity_tag, is_known
from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, MAX_MANIFEST_BYTES, Descriptor
from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.request_path import ManifestByDigest, ManifestByTag
from tidegate_proxy.oci.signed_manifest import is_signed
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.registry.hot_manifests import HotManifests, ReadyAnswer
from tidegate_proxy.registry.proofs import Proofs
from tidegate_proxy.registry.public import Shown
from tidegate_proxy.registry.tag_tiers import TagTiers
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.storage.index import Index, TagVariant
from tidegate_proxy.storage.store import DigestMismatch, Store
from tidegate_proxy.upstreams.content_coding import decoded, is_coded, is_gzipped
from tidegate_proxy.upstreams.requester import Requester
from tidegate_proxy.upstreams.upstream import FAILING, UpstreamBroken, UpstreamResponse, UpstreamUnreachable

_GONE = frozenset({404, 410})
_MAX_ANNOUNCED = 1024
_NOTED_EVERY_S = 1.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _TagName:
    """A tag and the media type in which it names something."""

    registry: str
    repository: str
    tag: str
    media_type: str


class NotServed(Exception):
    """The cache has no answer of its own: the registry's, untouched, is the right one."""


class NotShown(NotServed):
    """The same, because the registry does not show this reader what it names: neither may the cache."""


class Untold(NotServed):
    """The same, because the registry could not be asked: whoever has the answer may give it."""


class Manifests:
    """Answers GET and HEAD of a manifest; raises NotServed, UpstreamUnreachable or UpstreamBroken."""

    def __init__(
        self,
        *,
        store: Store,
        index: Index,
        proofs: Proofs,
        tiers: TagTiers,
        now: Callable[[], datetime],
        stale_max: timedelta,
        patience_s: float,
        mismatched: Callable[[Digest], None],
        promised: Callable[[bytes, str], None],
    ) -> None:
        """`mismatched` is told when bytes came that have another digest than the one asked for.

        `promised` is told each manifest that is kept, with its media type.
        """
        self._mismatched = mismatched
        self._promised = promised
        self._store = store
        self._index = index
        self._proofs = proofs
        self._tiers = tiers
        self._now = now
        self._stale_max = stale_max
        self._patience_s = patience_s
        # Tags that a HEAD told of, by digests that are not stored yet. containerd asks HEAD by tag, then GET
        # by digest: only then does the tag move, or a registry going dark in between would leave nothing.
        self._announced: dict[Digest, _TagName] = {}
        self._hot = HotManifests()
        self._asking: SingleFlight[tuple[Hashable, ...], UpstreamResponse] = SingleFlight()

    async def close(self) -> None:
        """End what runs."""
        await self._asking.close()

    def at_hand(self, digest: Digest) -> ReadyAnswer | None:
        """A manifest that is in memory, by its digest: a hit without any waiting.

        Uses are noted once a second: eviction counts in days.
        """
        ready = self._hot.get(digest)
        if ready is not None and (now := time.monotonic()) >= ready.noted + _NOTED_EVERY_S:
            ready.noted = now
            self._index.touch(digest, self._now())
        return ready

    def drop(self, digest: Digest) -> None:
        """Have it no longer in memory."""
        self._hot.drop(digest)

    async def by_digest(self, incoming: Incoming, request: ManifestByDigest, requester: Requester) -> Answer:
        stored = await self._stored(incoming, requester, request.digest, None, Cache.HIT)
        if stored is not None:
            return stored
        if incoming.method == "HEAD":
            return await self._described(incoming, requester)
        return await self._got(incoming, requester, request.digest)

    async def by_tag(self, incoming: Incoming, request: ManifestByTag, requester: Requester) -> Answer:
        accept = Accept.parse(incoming.headers.getall("Accept", []))
        variants = await self._index.tag_variants(
            requester.site.registry, str(request.repository), str(request.tag)
        )
        known = [variant for variant in variants if accept.allows(variant.media_type)]
        if requester.told is None and (believed := await self._believed(incoming, request, requester, known)):
            return believed
        last_resort = None if requester.own else await self._stale(incoming, requester, known)
        if last_resort is None:
            if not variants and incoming.method == "GET" and requester.told is None:
                return await self._downloaded(incoming, request, requester)
            return await self._fresh(incoming, request, requester, patience_s=None)
        if requester.upstream.dark(requester.site) or requester.must_wait:
            return last_resort
        try:
            return await self._fresh(incoming, request, requester, patience_s=self._patience_s)
        except (UpstreamUnreachable, UpstreamBroken, _Failing, Untold):
            return last_resort

    async def _fresh(
        self, incoming: Incoming, request: ManifestByTag, requester: Requester, patience_s: float | None
    ) -> Answer:
        """What the tag is now, by one HEAD, and the manifest from the store or by one GET.

        Who has an alternative gives a `patience_s`.
        """
        response = await self._asked(incoming, requester, patience_s)
        digest = _claimed_digest(response)
        if response.status in _GONE and await self._is_gone(incoming, requester):
            await self._index.drop_tag(requester.site.registry, str(request.repository), str(request.tag))
        if response.status in FAILING:
            raise _Failing
        if response.status != 200:
            raise NotServed
        if digest is not None:
            await self._rely(requester, digest)
            media_type = response.headers.get("Content-Type", "")
            tag = _tag_name(requester, request, media_type)
            stored = await self._stored(incoming, requester, digest, media_type, Cache.REVALIDATED)
            if stored is not None:
                await self._name(tag, digest)
                return stored
            if patience_s is not None and requester.is_scarce:
                raise _Failing  # what is left is for what is not cached at all
            self._announce(tag, digest)
        if incoming.method == "HEAD":
            if not is_coded(response.headers) and content_length(response.headers) is not None:
                return _head_answer(response)
            # Who codes on the way tells no length, without which dockerd ends its pull.
            return replace(await self._downloaded(incoming, request, requester), body=b"")
        return await self._downloaded(incoming, request, requester)

    async def _asked(
        self, incoming: Incoming, requester: Requester, patience_s: float | None
    ) -> UpstreamResponse:
        """The answer to a HEAD, closed: one for all who ask it at the same time by the same right."""

        async def ask() -> UpstreamResponse:
            response = await requester.request(
                "HEAD", incoming.target, _accept_of(incoming), patience_s=patience_s
            )
            await response.close()
            return response

        if requester.told is not None:
            return await ask()
        accepted = frozenset(
            each.strip() for value in incoming.headers.getall("Accept", []) for each in value.split(",")
        )
        right = requester.authorization if requester.own else requester.shared
        key = (requester.site, incoming.target, accepted, requester.own, right, patience_s)
        return await self._asking.run(key, ask)

    async def _described(self, incoming: Incoming, requester: Requester) -> Answer:
        """The registry's word for a manifest that is not stored, asked in the name that a GET is asked in."""
        if requester.own:
            raise NotServed  # the client asks itself, which may prove its right
        response = await requester.request("HEAD", incoming.target, _accept_of(incoming))
        await response.close()
        if response.status != 200:
            raise NotServed
        return _head_answer(response)

    async def _is_gone(self, incoming: Incoming, requester: Requester) -> bool:
        """Whether there is nothing of any media type: a 404 may be for want of one the client accepts."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        response = await requester.request("HEAD", incoming.target, accept, patience_s=self._patience_s)
        await response.close()
        return response.status in _GONE

    async def _downloaded(self, incoming: Incoming, request: ManifestByTag, requester: Requester) -> Answer:
        answer = await self._got(incoming, requester, None)
        digest = Digest.parse(answer.headers["Docker-Content-Digest"])
        await self._rely(requester, digest)
        await self._name(_tag_name(requester, request, answer.headers["Content-Type"]), digest)
        return answer

    async def _got(self, incoming: Incoming, requester: Requester, expected: Digest | None) -> Answer:
        """A GET, once more where the body breaks or is another: nothing was sent to the client yet."""
        for left in reversed(range(_ATTEMPTS)):
            response = await requester.request("GET", incoming.target, _accept_of(incoming))
            try:
                return await self._kept(response, expected=expected or _claimed_digest(response))
            except DigestMismatch as error:
                self._mismatched(error.digest)
                if not left:
                    raise
            except UpstreamBroken:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _rely(self, requester: Requester, digest: Digest) -> None:
        """A tag names that manifest; raises NotShown or Untold where these readers may not rely on it."""
        match await self._proofs.named(requester, digest):
            case Shown.NO:
                raise NotShown
            case Shown.UNTOLD:
                raise Untold

    async def _believed(
        self,
        incoming: Incoming,
        request: ManifestByTag,
        requester: Requester,
        variants: Sequence[TagVariant],
    ) -> Answer | None:
        """What the tag's tier lets be served without asking, if anything."""
        for variant in sorted(variants, key=lambda each: each.checked_at, reverse=True):
            if self._tiers.believes(
                requester.site.registry,
                str(request.repository),
                str(request.tag),
                checked_at=variant.checked_at,
                now=self._now(),
            ):
                answer = await self._stored(
                    incoming, requester, variant.digest, variant.media_type, Cache.HIT
                )
                if answer is not None:
                    return answer
        return None

    async def _stale(
        self, incoming: Incoming, requester: Requester, variants: Sequence[TagVariant]
    ) -> Answer | None:
        for variant in sorted(variants, key=lambda each: each.checked_at, reverse=True):
            if self._now() - variant.checked_at > self._stale_max:
                continue
            answer = await self._stored(incoming, requester, variant.digest, variant.media_type, Cache.STALE)
            if answer is not None:
                return answer
        return None

    async def _stored(
        self,
        incoming: Incoming,
        requester: Requester,
        digest: Digest,
        media_type: str | None,
        cache: Cache,
    ) -> Answer | None:
        if not await self._proofs.known(requester, digest):
            return None  # before the store is looked at: that it is there must not be seen
        blob = self._store.blob(digest)
        if blob is None:
            return None
        if media_type is None:
            descriptor = await self._index.descriptor(digest)
            if descriptor is None:
                return None  # a blob that was never served as a manifest
            media_type = descriptor.media_type
        self._index.touch(digest, self._now())
        headers = _describe(digest, media_type, blob.size_bytes)
        if is_known(incoming.headers.getall("If-None-Match", ()), digest):
            blob.close()
            del headers["Content-Length"]
            return Answer(status=304, headers=headers, cache=cache, kind=Kind.MANIFEST)
        with blob:
            body = b"" if incoming.method == "HEAD" else await blob.content()
        answer = Answer(status=200, headers=headers, body=body, cache=cache, kind=Kind.MANIFEST)
        if incoming.method == "GET" and cache is Cache.HIT:
            self._hot.put(digest, answer, body)
        return answer

    async def _kept(self, response: UpstreamResponse, *, expected: Digest | None) -> Answer:
        """Read a manifest, verify it, store it.

        Raises NotServed for anything else than a 200 with it, DigestMismatch for other bytes than expected.
        """
        try:
            if response.status in FAILING:
                raise _Failing
            if response.status != 200 or is_signed(response.headers.get("Content-Type", "")):
                raise NotServed
            manifest = await _read(response)
        finally:
            await response.close()
        if manifest is None:
            raise NotServed
        digest = expected or Digest.of(manifest)
        media_type = response.headers.get("Content-Type", "application/octet-stream")
        await self._store.put(digest, manifest)
        await self._index.put_manifest(
            Descriptor(media_type=media_type, digest=digest, size_bytes=len(manifest))
        )
        self._promised(manifest, media_type)
        announced = self._announced.pop(digest, None)
        if announced is not None:
            await self._name(announced, digest)
        headers = _describe(digest, media_type, len(manifest))
        return Answer(status=200, headers=headers, body=manifest, cache=Cache.MISS, kind=Kind.MANIFEST)

    async def _name(self, tag: _TagName, digest: Digest) -> None:
        variant = TagVariant(media_type=tag.media_type, digest=digest, checked_at=self._now())
        await self._index.put_tag(tag.registry, tag.repository, tag.tag, variant)

    def _announce(self, tag: _TagName, digest: Digest) -> None:
        if len(self._announced) >= _MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]
        self._announced[digest] = tag


class _Failing(NotServed):
    """The registry answers, but with 429 or a server error."""


def _tag_name(requester: Requester, request: ManifestByTag, media_type: str) -> _TagName:
    return _TagName(
        registry=requester.site.registry,
        repository=str(request.repository),
        tag=str(request.tag),
        media_type=media_type,
    )


def _accept_of(incoming: Incoming) -> CIMultiDict[str]:
    return CIMultiDict(("Accept", value) for value in incoming.headers.getall("Accept", []))


def _claimed_digest(response: UpstreamResponse) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except InvalidDigest:
        return None


async def _read(response: UpstreamResponse) -> bytes | None:
    """The manifest without a coding that somebody put on it on the way; None where it cannot be had."""
    if not is_coded(response.headers):
        return await response.read(MAX_MANIFEST_BYTES)
    if not is_gzipped(response.headers):
        return None
    manifest = bytearray()
    async for piece in decoded(response.chunks()):
        manifest += piece
        if len(manifest) > MAX_MANIFEST_BYTES:
            return None
    return bytes(manifest)


def _head_answer(response: UpstreamResponse) -> Answer:
    return Answer(status=200, headers=descriptive(response.headers), cache=Cache.MISS, kind=Kind.MANIFEST)


def _describe(digest: Digest, media_type: str, size_bytes: int) -> CIMultiDict[str]:
    return CIMultiDict(
        {
            "Content-Type": media_type,
            "Content-Length": str(size_bytes),
            "Docker-Content-Digest": str(digest),
            "ETag": entity_tag(digest),
            "Docker-Distribution-Api-Version": "registry/2.0",
        }
    )
