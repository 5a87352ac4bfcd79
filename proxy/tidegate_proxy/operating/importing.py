"""An OCI image layout into the cache, from a tar as its bytes arrive (decision 0035).

Nothing in it is believed: every blob is hashed and gets its name in the store only when that is its hash;
what is no part of an image that the layout names goes again. A part must come with the archive, unless this
repository is known to hold it already: or an archive could name somebody else's private blob and have it.

Whether everyone may read the repository is not the archive's to say. It stays as it is known, or is asked of
the registry; where that does not answer, the operator says it (`public`), and that counts while the registry
is dark alone.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tidegate_core.errors import TidegateError, UsageError
from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, Descriptor
from tidegate_proxy.oci.digest import Digest, Hasher
from tidegate_proxy.oci.image_layout import (
    INDEX,
    MAX_INDEX_BYTES,
    LayoutImage,
    LayoutRefused,
    blob_digest,
    images_of,
)
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.reference import Tag
from tidegate_proxy.oci.tar_stream import Entry, Piece, TarReader
from tidegate_proxy.operating.forms import Imported
from tidegate_proxy.operating.image_tree import Part, image_tree
from tidegate_proxy.operating.named import site_of
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries, Site
from tidegate_proxy.storage.index import TagVariant
from tidegate_proxy.storage.partial import PartialBlob, SyncFailed
from tidegate_proxy.upstreams.upstream import UpstreamBroken, UpstreamUnreachable

_WRITE_BYTES = 1 << 20


class ImportRefused(TidegateError):
    """The archive cannot be taken as it is."""


@dataclass(slots=True)
class _Arriving:
    """One blob on its way from the archive into the store."""

    digest: Digest
    partial: PartialBlob | None
    hasher: Hasher
    size_bytes: int = 0
    waiting: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Arrived:
    """What the archive brought: `new` were not in the store before."""

    blobs: set[Digest] = field(default_factory=set)
    new: dict[Digest, int] = field(default_factory=dict)
    index: bytearray | None = None


class Importing:
    """Takes image layouts."""

    def __init__(
        self,
        *,
        cache: PullThroughCache,
        registries: Registries,
        limit_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        """At most `limit_bytes` of one archive are read."""
        self._cache = cache
        self._registries = registries
        self._limit_bytes = limit_bytes
        self._now = now

    async def archive(
        self, pieces: AsyncIterator[bytes], *, name_as: ImageName | None, public: bool
    ) -> Imported:
        """Store the images of the archive; raises ArchiveRefused, LayoutRefused, ImportRefused, UsageError.

        After a refusal nothing of it is left.
        """
        if name_as is not None and isinstance(name_as.reference, Digest):
            raise UsageError(
                "an import is named by a tag, not by a digest", next_step="tidegate import FILE --as NAME:TAG"
            )
        arrived = _Arrived()
        done = False
        try:
            await self._read(pieces, arrived)
            images, remarks = await self._images(arrived, name_as)
            for image, _ in images:
                site = site_of(self._registries, image.name)
                await self._must_be_readable(site, image, public=public)
            for image, tree in images:
                await self._take(image, tree, public=public)
            done = True
        finally:
            used = {digest for _, tree in images for digest in tree.distinct()} if done else set()
            await self._give_up(set(arrived.new) - used)
        kept = {digest: size for digest, size in arrived.new.items() if digest in used}
        return Imported(
            images=[str(image.name) for image, _ in images],
            blobs=len(kept),
            bytes=sum(kept.values()),
            remarks=remarks,
        )

    async def _read(self, pieces: AsyncIterator[bytes], arrived: _Arrived) -> None:
        reader = TarReader()
        arriving: _Arriving | None = None
        in_index = False
        left = self._limit_bytes
        try:
            async for data in pieces:
                left -= len(data)
                if left < 0:
                    raise ImportRefused(
                        f"the archive is larger than the {self._limit_bytes} bytes that the cache may take",
                        next_step="set [cache] max_size",
                    )
                for event in reader.feed(data):
                    if isinstance(event, Entry):
                        in_index = event.name == INDEX
                        if in_index:
                            _check_index(event)
                            arrived.index = bytearray()
                        digest = blob_digest(event.name)
                        if digest is not None and event.size_bytes > left + len(data):
                            raise ImportRefused(
                                f"{digest} alone is said to have {event.size_bytes} bytes: more than fits",
                                next_step="set [cache] max_size",
                            )
                        arriving = await self._begin(digest) if digest is not None else None
                    elif isinstance(event, Piece):
                        if in_index and arrived.index is not None:
                            arrived.index += event.data
                        if arriving is not None:
                            await self._add(arriving, event)
                            if event.last:
                                ended, arriving = arriving, None
                                await self._publish(ended, arrived)
            reader.end()
        finally:
            if arriving is not None and arriving.partial is not None:
                await self._cache.store.run(arriving.partial.discard)

    async def _begin(self, digest: Digest) -> _Arriving:
        store = self._cache.store
        if await store.run(store.holds, digest):
            return _Arriving(digest, None, digest.hasher())
        try:
            return _Arriving(digest, await store.run(store.apart, digest), digest.hasher())
        except OSError as error:
            raise _disk(error) from error

    async def _add(self, arriving: _Arriving, piece: Piece) -> None:
        arriving.waiting += piece.data
        if len(arriving.waiting) >= _WRITE_BYTES or piece.last:
            data, arriving.waiting = bytes(arriving.waiting), bytearray()
            try:
                await self._cache.store.run(_write, arriving, data)
            except OSError as error:
                raise _disk(error) from error

    async def _publish(self, arriving: _Arriving, arrived: _Arrived) -> None:
        if arriving.hasher.hexdigest() != arriving.digest.encoded:
            if arriving.partial is not None:
                await self._cache.store.run(arriving.partial.discard)
            raise ImportRefused(
                f"the bytes under {arriving.digest} have another digest: the archive is damaged or forged",
                next_step="make it again, or copy it again",
            )
        if arriving.partial is not None:
            try:
                await self._cache.store.run(self._cache.store.publish, arriving.partial)
            except (OSError, SyncFailed) as error:
                await self._cache.store.run(arriving.partial.discard)
                raise _disk(error) from error
            arrived.new[arriving.digest] = arriving.size_bytes
        arrived.blobs.add(arriving.digest)

    async def _images(
        self, arrived: _Arrived, name_as: ImageName | None
    ) -> tuple[Sequence[tuple[LayoutImage, Part]], list[str]]:
        if arrived.index is None:
            raise LayoutRefused(
                "it has no index.json: it is no OCI image layout",
                next_step="skopeo copy docker-archive:FILE oci-archive:OTHER makes one of docker save's",
            )
        found = []
        remarks: list[str] = []
        for image in images_of(bytes(arrived.index), name_as=name_as):
            tree = await image_tree(self._cache.store, image.digest, image.media_type)
            if tree is None or image.digest not in arrived.blobs:
                raise LayoutRefused(f"the manifest of {image.name}, {image.digest}, is not in it")
            tree, left_out = _with_what_came(tree, arrived.blobs)
            remarks += [f"{image.name} has no {each} in the archive" for each in left_out]
            await self._must_have_come(image, tree, arrived)
            found.append((image, tree))
        return found, remarks

    async def _must_have_come(self, image: LayoutImage, tree: Part, arrived: _Arrived) -> None:
        site = site_of(self._registries, image.name)
        for part in tree.walk():
            if part.digest in arrived.blobs or _is_elsewhere(part):
                continue
            if part.present and await self._cache.index.members.holds(
                site.namespace, image.name.repository.name, part.digest
            ):
                continue
            raise ImportRefused(
                f"{part.digest}, a part of {image.name}, is not in the archive",
                next_step="make the archive anew, with all of the image",
            )

    async def _must_be_readable(self, site: Site, image: LayoutImage, *, public: bool) -> None:
        repository = image.name.repository
        known = await self._cache.index.public_checked_at(site.namespace, repository.name)
        if public or known is not None:
            return
        target = f"/v2/{repository}/manifests/{image.digest}"
        try:
            right = await self._cache.readable.by_everyone(site, repository, target)
        except (UpstreamUnreachable, UpstreamBroken):
            right = None
        if right is None:
            raise ImportRefused(
                f"that everyone may read {site.namespace}/{repository} is not known, and its registry does "
                "not say so now",
                next_step="if every user of this node may: tidegate import FILE --public",
            )

    async def _take(self, image: LayoutImage, tree: Part, *, public: bool) -> None:
        """Have it served as if its registry had shown it."""
        index, name = self._cache.index, image.name
        site = site_of(self._registries, name)
        present = {digest: part for digest, part in tree.distinct().items() if part.present}
        for part in present.values():
            if part.descriptor.media_type in MANIFEST_TYPES:
                await index.put_manifest(
                    Descriptor(
                        media_type=part.descriptor.media_type,
                        digest=part.digest,
                        size_bytes=part.descriptor.size_bytes,
                    )
                )
        await index.members.learn(site.namespace, name.repository.name, present)
        if public:
            await self._cache.readable.believe(site, name.repository)
        variant = TagVariant(media_type=image.media_type, digest=image.digest, checked_at=self._now())
        assert isinstance(name.reference, Tag)  # `images_of` gives tags
        await index.put_tag(site.registry, name.repository.name, name.reference.name, variant)

    async def _give_up(self, digests: set[Digest]) -> None:
        for digest in digests:
            await self._cache.purge(digest)


def _check_index(entry: Entry) -> None:
    if entry.size_bytes > MAX_INDEX_BYTES:
        raise LayoutRefused(f"its index.json is larger than {MAX_INDEX_BYTES} bytes")


def _with_what_came(tree: Part, came: set[Digest]) -> tuple[Part, list[str]]:
    """Without the platforms of an index of which nothing came; raises LayoutRefused when none is left."""
    if not tree.is_index:
        return tree, []
    here = tuple(part for part in tree.parts if part.digest in came)
    if not here:
        raise LayoutRefused(f"none of the manifests of {tree.digest} is in it")
    left_out = [str(part.platform or part.digest) for part in tree.parts if part.digest not in came]
    kept = Part(descriptor=tree.descriptor, present=True, platform=tree.platform, parts=here)
    return kept, left_out


def _is_elsewhere(part: Part) -> bool:
    """Whether it is a layer that registries and archives need not have (image-spec, layer.md)."""
    media_type = part.descriptor.media_type.lower()
    return "nondistributable" in media_type or ".foreign." in media_type


def _write(arriving: _Arriving, data: bytes) -> None:
    arriving.hasher.update(data)
    if arriving.partial is not None:
        arriving.partial.write(arriving.size_bytes, data)
    arriving.size_bytes += len(data)


def _disk(error: OSError | SyncFailed) -> ImportRefused:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ImportRefused(f"the cache cannot be written: {said}", next_step="tidegate cache stats; df")
