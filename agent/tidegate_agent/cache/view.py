"""The cache for people: lists, figures, what a purge did and why a pull would miss; lines to print. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.filesize import decimal

from tidegate_proxy.operating.forms import Explained, Image, Images, Imported, Purged, Stats

_DIGEST_SHOWN = 19
_BLOBS_SHOWN = 40
_PLATFORMS_SHOWN = 3


def listed(page: Images, *, more: str) -> Iterator[str]:
    """One line per image; `more` is what to type for the next page."""
    if not page.images:
        yield "nothing is cached here yet: tidegate pull REF, or let a client pull"
        return
    rows = [("IMAGE", "DIGEST", "SIZE", "LAST USE", "STATE"), *map(_row, page.images)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]
        ).rstrip()
    if page.next is not None:
        yield f"more: {more} --after {page.next}"


def _row(image: Image) -> tuple[str, str, str, str, str]:
    state: str = image.state
    if image.state == "partial":
        state = f"partial ({image.blobs_present} of {image.blobs})"
    if image.platforms:
        more = ", ..." if len(image.platforms) > _PLATFORMS_SHOWN else ""
        state += f", {', '.join(image.platforms[:_PLATFORMS_SHOWN])}{more}"
    name = image.reference if image.tag else image.reference.partition("@")[0]
    return name, image.digest[:_DIGEST_SHOWN], decimal(image.bytes), _when(image.last_use), state


def _when(text: str | None) -> str:
    return "-" if text is None else datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")


def figures(stats: Stats) -> Iterator[str]:
    """The store and what it saved."""
    of = f" of {decimal(stats.max_bytes)}" if stats.max_bytes else ""
    yield f"stored      {decimal(stats.bytes)}{of} in {stats.blobs} blobs and manifests, {stats.tags} tags"
    if stats.unfinished_blobs:
        yield f"unfinished  {decimal(stats.unfinished_bytes)} of {stats.unfinished_blobs} blobs"
    if stats.evicted_bytes:
        yield f"evicted     {decimal(stats.evicted_bytes)} since the start"
    yield f"served      {stats.hits} hits, {stats.misses} misses, {stats.stale} stale since the start"
    yield f"saved       {decimal(stats.saved_bytes)}"
    for each in stats.registries:
        yield f"  {each.registry}: {decimal(each.bytes)}, {each.manifests} manifests, {each.blobs} in all"


def purged(done: Purged) -> Iterator[str]:
    """What went, what stayed and why."""
    for tag in done.tags:
        yield f"forgotten  {tag}"
    freed = f"{decimal(done.freed_bytes)} ({done.freed_bytes} bytes)"
    yield f"freed      {freed} in {done.removed_blobs} blobs and manifests"
    if done.kept_blobs:
        yield f"kept       {decimal(done.kept_bytes)} in {done.kept_blobs}, which other cached images need"
    if done.in_use:
        yield f"in use     {done.in_use} of them are being read: their space comes free when that ends"


def explained(answer: Explained) -> Iterator[str]:
    """The verdict first, then what led to it."""
    yield f"{answer.reference}: the next pull is {_OUTLOOK[answer.outlook]}"
    yield f"  because {answer.because}"
    if answer.next_step:
        yield f"  {answer.next_step}"
    for fact in answer.facts:
        yield f"{'+' if fact.ok else '-'} {fact.about:<10} {fact.detail}"
    for blob in answer.blobs[:_BLOBS_SHOWN]:
        of = f"{decimal(blob.present_bytes)} of " if blob.state == "partial" else ""
        platform = f" {blob.platform}" if blob.platform else ""
        yield f"  {blob.state:<8} {blob.digest} {of}{decimal(blob.size_bytes)}{platform}"
    if len(answer.blobs) > _BLOBS_SHOWN:
        yield f"  and {len(answer.blobs) - _BLOBS_SHOWN} more: --json lists them"


_OUTLOOK = {
    "hit": "a hit",
    "revalidate": "a hit, after a question to the registry",
    "miss": "a miss",
    "stale": "a stale hit",
    "not cached": "not cached",
}


def imported(done: Imported) -> Sequence[str]:
    """Which images there are now."""
    new = (
        f"{done.blobs} new blobs and manifests, {decimal(done.bytes)}" if done.blobs else "nothing new in it"
    )
    return [*(f"imported {image}" for image in done.images), new, *done.remarks]
