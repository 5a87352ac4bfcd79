"""An image out of the cache, as a tar of an OCI image layout: no registry is asked.

What is exported is what one platform's client needs, or more, never less: where something of it is absent the
export is refused before its first byte. Of an index the platforms that are not here are left out, as the
specification allows; `all_platforms` wants each. The manifest under the tag stays as it is.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_layout import INDEX, LAYOUT, LAYOUT_CONTENT, blob_name, index_of
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.platform import Platform
from tidegate_proxy.oci.tar_stream import TRAILER, header, padding
from tidegate_proxy.operating.image_tree import Part, image_tree
from tidegate_proxy.operating.named import site_of
from tidegate_proxy.operating.pulling import Wanted
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries
from tidegate_proxy.storage.reading import BodyBroken
from tidegate_proxy.storage.store import Store, StoredBlob

_NAMED_MISSING = 5


class NotComplete(TidegateError):
    """Something of the image is not in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What will be written; `left_out` are platforms that are not here."""

    name: ImageName
    root: Part
    parts: Sequence[Part]
    left_out: Sequence[str]


async def export_of(
    cache: PullThroughCache, registries: Registries, name: ImageName, wanted: Wanted
) -> Export:
    """What an export of the image consists of; raises NotComplete, PullFailed or NoSuchRegistry."""
    name = name.or_latest
    site = site_of(registries, name)
    pull = f"tidegate pull {name}{' --all-platforms' if wanted.all_platforms else ''}"
    digest = name.reference if isinstance(name.reference, Digest) else None
    if digest is None:
        key = (site.registry, name.repository.name, str(name.reference))
        variants = await cache.index.tag_variants(*key)
        newest = max(variants, key=lambda each: each.checked_at, default=None)
        if newest is None:
            raise NotComplete(f"{name} is not cached", next_step=pull)
        digest = newest.digest
    root = await image_tree(cache.store, digest)
    if root is None:
        raise NotComplete(f"the manifest of {name}, {digest}, is not cached", next_step=pull)
    parts, left_out = _chosen(root, wanted)
    missing = [part for part in parts if not part.present]
    if missing:
        named = ", ".join(str(part.digest) for part in missing[:_NAMED_MISSING])
        more = f" and {len(missing) - _NAMED_MISSING} more" if len(missing) > _NAMED_MISSING else ""
        raise NotComplete(
            f"{len(missing)} of {len(parts)} blobs and manifests of {name} are not cached: {named}{more}",
            next_step=pull,
        )
    return Export(name=name, root=root, parts=parts, left_out=left_out)


def _chosen(root: Part, wanted: Wanted) -> tuple[list[Part], list[str]]:
    if not root.is_index:
        return list(root.distinct().values()), []
    needed = set(wanted.chosen({part.digest: part.platform for part in root.parts}))
    found = {root.digest: root}
    left_out = []
    for child in root.parts:
        if child.digest in needed or (child.present and child.complete):
            found.update(child.distinct())
        else:
            left_out.append(str(child.platform or child.digest))
    return list(found.values()), left_out


async def layout_of(export: Export, store: Store) -> AsyncIterator[bytes | memoryview]:
    """The archive, in pieces; raises BodyBroken when a blob went or the disk fails meanwhile."""
    descriptor = export.root.descriptor
    index = index_of(export.name, descriptor.digest, descriptor.media_type, descriptor.size_bytes)
    for name, content in ((LAYOUT, LAYOUT_CONTENT), (INDEX, index)):
        yield header(name, len(content)) + content + padding(len(content))
    for part in sorted(export.parts, key=lambda each: str(each.digest)):
        blob = store.blob(part.digest)
        if blob is None:
            raise BodyBroken(f"{part.digest} was given up meanwhile", next_step="tidegate pull it again")
        async for piece in _entry(blob):
            yield piece
    yield TRAILER


async def _entry(blob: StoredBlob) -> AsyncIterator[bytes | memoryview]:
    with blob:
        yield header(blob_name(blob.digest), blob.size_bytes)
        if blob.size_bytes:
            async for piece in blob.stream():
                yield piece
        yield padding(blob.size_bytes)


def this_platform(machine: str) -> Wanted:
    """What a client on such a machine needs."""
    return Wanted(platforms=(Platform.of_machine(machine),))
