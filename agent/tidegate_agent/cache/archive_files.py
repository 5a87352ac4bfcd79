"""Image layouts on disk as the command line has them: a tar file, a directory, or standard input and output.

The command line reads and writes, as its user may read what the agent's user may not. What is written is
verified on its way: a file that ends well is whole, and has its name only then. Blocks.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tidegate_core.errors import TidegateError, UsageError
from tidegate_proxy.oci.digest import Hasher
from tidegate_proxy.oci.image_layout import INDEX, LAYOUT, blob_digest
from tidegate_proxy.oci.tar_stream import TRAILER, Entry, Piece, TarReader, header, padding

_PIECE = 1 << 20


def pieces_of(source: str) -> Iterator[bytes]:
    """The archive at that path, `-` for standard input; of a directory, one made of its layout."""
    if source == "-":
        yield from _read(sys.stdin.buffer)
        return
    path = Path(source)
    try:
        if path.is_dir():
            yield from _packed(path)
            return
        with path.open("rb") as file:
            yield from _read(file)
    except OSError as error:
        raise TidegateError(
            f"{error.filename or path} cannot be read: {error.strerror}", next_step=f"ls -l {path}"
        ) from error


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _packed(folder: Path) -> Iterator[bytes]:
    if not (folder / INDEX).is_file():
        raise UsageError(
            f"{folder} has no index.json: it is no OCI image layout",
            next_step=f"skopeo copy docker://IMAGE oci:{folder} makes one",
        )
    blobs = sorted(path for path in folder.glob("blobs/*/*"))
    for path in (folder / LAYOUT, folder / INDEX, *blobs):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            left = os.fstat(fd).st_size
            yield header(str(path.relative_to(folder)), left)
            end = padding(left)
            while left and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
            if left:
                raise TidegateError(f"{path} became shorter while it was read", next_step="try again")
            yield end
    yield TRAILER


def write_archive(read: Callable[[int], bytes], target: str) -> int:
    """Write what `read` gives, verified; `target` is a file, a directory (made when it ends in `/`) or `-`.

    Returns the bytes written; nothing is left under the target's name when it fails.
    """
    if target == "-":
        return _write(_Verified(read), sys.stdout.buffer)
    path = Path(target)
    if target.endswith("/") or path.is_dir():
        return _unpacked(_Verified(read), path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            written = _write(_Verified(read), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return written


def _write(archive: "_Verified", file: BinaryIO) -> int:
    written = 0
    for data, _ in archive:
        file.write(data)
        written += len(data)
    file.flush()
    return written


def _unpacked(archive: "_Verified", folder: Path) -> int:
    written = 0
    file: BinaryIO | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _, events in archive:
            for event in events:
                if isinstance(event, Entry):
                    path = folder / event.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = path.open("wb")
                    continue
                assert file is not None  # pieces follow an entry
                file.write(event.data)
                written += len(event.data)
                if event.last:
                    file.close()
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        if file is not None:
            file.close()
    return written


class _Verified:
    """The archive's bytes with what they tell; TidegateError where a blob is not what its name says."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[tuple[bytes, list[Entry | Piece]]]:
        reader = TarReader()
        name, hasher = "", None
        while data := self._read(_PIECE):
            events = list(reader.feed(data))
            for event in events:
                if isinstance(event, Entry):
                    name, hasher = event.name, _hasher(event.name)
                elif hasher is not None:
                    hasher.update(event.data)
                    if event.last and not name.endswith(hasher.hexdigest()):
                        raise TidegateError(
                            f"what the cache has under {name} has another digest",
                            next_step=f"tidegate cache purge {':'.join(name.split('/')[1:])}",
                        )
            yield data, events
        reader.end()


def _hasher(name: str) -> Hasher | None:
    digest = blob_digest(name)
    return None if digest is None else digest.hasher()


def _unwritable(path: Path, error: OSError) -> TidegateError:
    return TidegateError(
        f"{path} cannot be written: {error.strerror}", next_step="name another place with -o FILE"
    )
