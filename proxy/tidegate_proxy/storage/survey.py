"""The files of the store, compared with the catalogue: what has no row gets one, what has no file loses its.

One folder of `blobs/<algorithm>/<two digits>` at a time, in the background, at most half of the time: a
million blobs are never in memory, and hold nothing up. A blob that the index does not know is as old as its
file says, and read when it is small enough to be a manifest: so a lost index is rebuilt, but for tags and
rights, which only registries know. What cannot be identified is counted and left alone; a manifest that does
not hash to its name is damaged, and removed.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate_proxy.oci.descriptor import MAX_MANIFEST_BYTES, Descriptor
from tidegate_proxy.oci.digest import ALGORITHMS, Digest, InvalidDigest
from tidegate_proxy.oci.manifest_type import manifest_type
from tidegate_proxy.storage.catalogue import Found
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.store import Store

_AT_ONCE = 512
_HEX = "0123456789abcdef"
_BEGINNINGS = frozenset({b"{", b" ", b"\t", b"\r", b"\n"})  # of JSON that is an object (RFC 8259)


@dataclass(slots=True, kw_only=True)
class Surveyed:
    """What a survey came across."""

    files: int = 0
    added: int = 0
    manifests: int = 0
    damaged: int = 0
    unidentified: int = 0


async def survey(store: Store, index: Index) -> Surveyed:
    """Compare all of it."""
    seen = Surveyed()
    ended = await index.catalogue.survey_begins()
    folders = await store.run(_folders, store.blobs)
    known = [each for each in ALGORITHMS if each not in folders and await index.catalogue.knows_any(each)]
    for algorithm in (*folders, *known):
        seen.unidentified += await store.run(_foreign, store.blobs / algorithm)
        for prefix in (high + low for high in _HEX for low in _HEX):
            began = time.monotonic()
            names, foreign = await store.run(_names, store.blobs / algorithm / prefix)
            seen.files += len(names)
            seen.unidentified += foreign
            await _compare(store, index, algorithm, prefix, names, seen)
            await asyncio.sleep(time.monotonic() - began)
    ended()
    return seen


async def _compare(
    store: Store, index: Index, algorithm: str, prefix: str, names: Sequence[str], seen: Surveyed
) -> None:
    """Put right the rows of one folder, whose files have these names, in order."""
    start = prefix
    for first in range(0, max(len(names), 1), _AT_ONCE):
        some = names[first : first + _AT_ONCE]
        end = names[first + _AT_ONCE] if first + _AT_ONCE < len(names) else f"{prefix}g"
        known = await index.catalogue.known_between(f"{algorithm}:{start}", f"{algorithm}:{end}")
        start = end
        there = {f"{algorithm}:{name}" for name in some}
        if missing := known - there:
            await index.forget_missing(list(_digests(missing)), store.holds)
        if unknown := there - known:
            found = await store.run(_found, store, list(_digests(unknown)))
            await index.catalogue.found(found)
            seen.added += len(found)
            await _read_manifests(store, index, found, seen)


async def _read_manifests(store: Store, index: Index, found: Sequence[Found], seen: Surveyed) -> None:
    for each in found:
        if each.size_bytes > MAX_MANIFEST_BYTES or await index.descriptor(each.digest) is not None:
            continue
        read = await store.run(_manifest, store.path(each.digest), each.digest)
        if read is _Damaged:
            seen.damaged += 1
            with suppress(OSError):
                await store.run(store.remove, each.digest)
            await index.forget_missing([each.digest], store.holds)
        elif isinstance(read, Descriptor):
            seen.manifests += 1
            await index.put_manifest(read)


class _Damaged:
    """What looks like a manifest has another digest."""


# What blocks.


def _folders(blobs: Path) -> list[str]:
    """The algorithms that have folders."""
    with suppress(OSError), os.scandir(blobs) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def _foreign(folder: Path) -> int:
    """How many entries are no folders of ours."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sum(not _is_prefix(entry) for entry in entries)
    return 0


def _is_prefix(entry: "os.DirEntry[str]") -> bool:
    return len(entry.name) == 2 and set(entry.name) <= set(_HEX) and entry.is_dir(follow_symlinks=False)


def _names(folder: Path) -> tuple[list[str], int]:
    """The names of blobs in order, and how many other entries there are."""
    names, foreign = [], 0
    algorithm = folder.parent.name
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_blob(algorithm, folder.name, entry):
                names.append(entry.name)
            else:
                foreign += 1
    return sorted(names), foreign


def _is_blob(algorithm: str, prefix: str, entry: "os.DirEntry[str]") -> bool:
    try:
        digest = Digest.parse(f"{algorithm}:{entry.name}")
    except InvalidDigest:
        return False
    return digest.encoded.startswith(prefix) and entry.is_file(follow_symlinks=False)


def _digests(texts: set[str]) -> Iterator[Digest]:
    for text in sorted(texts):
        with suppress(InvalidDigest):
            yield Digest.parse(text)


def _found(store: Store, digests: Sequence[Digest]) -> list[Found]:
    found = []
    for digest in digests:
        with suppress(OSError):
            status = store.path(digest).lstat()
            last_use = max(status.st_atime, status.st_mtime)
            found.append(Found(digest=digest, size_bytes=status.st_size, last_use=last_use))
    return found


def _manifest(path: Path, digest: Digest) -> Descriptor | type[_Damaged] | None:
    """What the file is, if a manifest; it is read whole only when it begins like one."""
    try:
        with path.open("rb", buffering=0) as file:
            first = file.read(1)
            if first not in _BEGINNINGS:
                return None
            content = first + (file.read(MAX_MANIFEST_BYTES) or b"")
    except OSError:
        return None
    media_type = manifest_type(content)
    if media_type is None:
        return None
    hasher = digest.hasher()
    hasher.update(content)
    if hasher.hexdigest() != digest.encoded:
        return _Damaged
    return Descriptor(media_type=media_type, digest=digest, size_bytes=len(content))
