"""The cached images, page by page, and the figures of the store."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime

from tidegate_core.errors import UsageError
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.operating.forms import Image, Images, RegistryStats, Stats
from tidegate_proxy.operating.image_tree import Part, image_tree
from tidegate_proxy.operating.named import spoken
from tidegate_proxy.site import Registries
from tidegate_proxy.storage.store import Store
from tidegate_proxy.storage.tag_rows import UNTAGGED, TagRow, TagRows
from tidegate_proxy.storage.usage import Usage

LARGEST_PAGE = 1000


async def images(
    *,
    store: Store,
    rows: TagRows,
    registries: Registries,
    within: ImageName | None,
    untagged: bool,
    after: str,
    limit: int,
) -> Images:
    """A page of at most `limit`; with `untagged` the manifests that no tag names. Raises UsageError."""
    limit = max(1, min(limit, LARGEST_PAGE))
    key = _parse_cursor(after, 3 if untagged else 4)
    site = registries.by_namespace(within.registry) if within is not None else None
    repository = within.repository.name if within is not None else ""
    if within is not None and site is None:
        return Images(images=[], next=None)

    def page() -> list[tuple[TagRow, str]]:
        if untagged:
            registry = "" if site is None else site.namespace
            after_digest = (key[0], key[1], key[2])
            found = rows.untagged(after=after_digest, registry=registry, repository=repository, limit=limit)
            return [(row, row.registry) for row in found]
        registry = "" if site is None else site.registry
        after_tag = (key[0], key[1], key[2], key[3])
        found = rows.tags(after=after_tag, registry=registry, repository=repository, limit=limit)
        return [(row, spoken(registries, rows, row)) for row in found]

    found = await store.run(page)
    listed = [await _image(store, row, registry) for row, registry in found]
    cursor = None
    if len(found) == limit:
        last = found[-1][0]
        cursor = _cursor((str(last.digest), last.registry, last.repository) if untagged else last.key)
    return Images(images=listed, next=cursor)


async def stats(
    *, store: Store, rows: TagRows, usage: Usage, max_bytes: int, served: tuple[int, int, int, int]
) -> Stats:
    """`served` are hits, misses, stale answers and saved bytes since the start."""
    unfinished = await store.run(store.leftovers)
    shares = await store.run(rows.by_registry)
    hits, misses, stale, saved_bytes = served
    return Stats(
        blobs=usage.blobs,
        bytes=usage.stored_bytes,
        max_bytes=max_bytes,
        evicted_bytes=usage.evicted_bytes,
        unfinished_blobs=len(unfinished),
        unfinished_bytes=sum(each.disk_bytes for each in unfinished),
        tags=await store.run(rows.count_tags),
        registries=[
            RegistryStats(
                registry=each.registry, blobs=each.blobs, manifests=each.manifests, bytes=each.size_bytes
            )
            for each in shares
        ],
        hits=hits,
        misses=misses,
        stale=stale,
        saved_bytes=saved_bytes,
    )


async def _image(store: Store, row: TagRow, registry: str) -> Image:
    tree = await image_tree(store, row.digest, row.media_type)
    counted = list(tree.distinct().values()) if tree is not None else []
    if tree is not None and tree.is_index:
        counted = list(counted_parts(tree))
    separator, reference = (":", row.tag) if row.tag != UNTAGGED else ("@", str(row.digest))
    present = [part for part in counted if part.present]
    state = "unknown" if tree is None else "complete" if len(present) == len(counted) > 1 else "partial"
    return Image(
        reference=f"{registry}/{row.repository}{separator}{reference}",
        registry=registry,
        repository=row.repository,
        tag="" if row.tag == UNTAGGED else row.tag,
        digest=str(row.digest),
        media_type=row.media_type,
        state=state,  # type: ignore[arg-type] # mypy widens conditional literals to str
        blobs=len(counted),
        blobs_present=len(present),
        platforms=platforms(tree),
        size_bytes=sum(part.descriptor.size_bytes for part in counted),
        bytes=sum(part.descriptor.size_bytes for part in present),
        last_use=written(row.last_use),
        checked_at=written(row.checked_at),
    )


def counted_parts(tree: Part) -> Sequence[Part]:
    """The parts of an image that count: of an index those whose manifest is there, or all if none is."""
    children = [part for part in tree.parts if part.present] or list(tree.parts)
    if not tree.is_index:
        return list(tree.distinct().values())
    found = {tree.digest: tree}
    for child in children:
        found.update(child.distinct())
    return list(found.values())


def platforms(tree: Part | None) -> list[str]:
    """The platforms of an index of which the manifest is there."""
    if tree is None:
        return []
    return [str(part.platform) for part in tree.parts if part.present and part.platform is not None]


def written(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


def _cursor(key: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _parse_cursor(text: str, length: int) -> Sequence[str]:
    if not text:
        return ("",) * length
    try:
        key = json.loads(base64.urlsafe_b64decode(text.encode()))
    except ValueError:
        key = None
    if not isinstance(key, list) or len(key) != length or not all(isinstance(each, str) for each in key):
        raise UsageError(
            "that is no place in the list", next_step="give as `after` what `next` said, or nothing"
        )
    return key
