"""A tar archive as bytes in and entries out, or the other way: POSIX.1-2001 (ustar, pax) and GNU long names.

For archives that nobody vouches for: only regular files and directories are let through, under relative
names without `..`, each name once; links, devices and sparse files are refused. How long extended headers
and how many entries there may be is limited; how large a file may be is for whoever reads it to say. Pure:
nothing is extracted, names are values.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate_core.errors import TidegateError

BLOCK = 512
MOST_ENTRIES = 100_000
_LARGEST_EXTENDED = 64 * 1024
_LONGEST_NAME = 1024
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}


class ArchiveRefused(TidegateError):
    """The archive is damaged, or has something in it that no image layout needs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file begins."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the file that began last; `last` with its final ones, which may be none."""

    data: bytes
    last: bool


class TarReader:
    """Feed it bytes as they come, and `end` it; both raise ArchiveRefused."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0
        self._in_file = False
        self._extended: bytes | None = None
        self._next: dict[str, str] = {}
        self._names: set[str] = set()
        self._ended = False
        self._begun = False

    def feed(self, data: bytes | memoryview) -> Iterator[Entry | Piece]:
        """What those bytes complete; iterate it to its end before feeding more."""
        self._buffer += data
        if not self._begun and len(self._buffer) >= 2:
            self._begun = True
            if (program := _COMPRESSED.get(bytes(self._buffer[:2]))) is not None:
                raise ArchiveRefused(
                    "the archive is compressed",
                    next_step=f"{program} it first: layers are compressed already",
                )
        while (event := self._step()) is not None:
            if not isinstance(event, bool):
                yield event

    def end(self) -> None:
        """No byte follows: refused when the archive stops in the middle."""
        if not self._ended:
            raise ArchiveRefused("the archive is cut short", next_step="make it again, or copy it again")

    def _step(self) -> Entry | Piece | bool | None:
        """The next event, True for something that is none, None when more bytes are needed."""
        if self._ended:
            self._buffer.clear()  # what follows the end is padding of tape blocks
            return None
        if self._in_file:
            return self._file_piece()
        if self._padding:
            taken = min(self._padding, len(self._buffer))
            del self._buffer[:taken]
            self._padding -= taken
            return True if taken else None
        if len(self._buffer) < BLOCK:
            return None
        header = bytes(self._buffer[:BLOCK])
        if not any(header):
            self._ended = True
            return True
        return self._header(header)

    def _file_piece(self) -> Piece | None:
        if not self._buffer and self._left:
            return None
        taken = min(self._left, len(self._buffer))
        data = bytes(self._buffer[:taken])
        del self._buffer[:taken]
        self._left -= taken
        self._in_file = self._left > 0
        return Piece(data, last=not self._in_file)

    def _header(self, header: bytes) -> Entry | bool | None:
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ArchiveRefused(
                f"it is no tar archive, or a damaged one: {error}",
                next_step="skopeo copy docker://IMAGE oci-archive:FILE makes one",
            ) from error
        kind = info.type
        if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            return self._extension(info)
        name = _checked(self._next.pop("path", info.name))
        size = self._size(info)
        self._next.clear()
        if kind not in _REGULAR and kind != tarfile.DIRTYPE:
            what = _KINDS.get(kind, f"an entry of type {kind!r}")
            raise ArchiveRefused(f"{name!r} is {what}", next_step="an image layout has files alone")
        if name in self._names and kind != tarfile.DIRTYPE:
            raise ArchiveRefused(f"{name!r} comes twice", next_step="make the archive anew")
        if len(self._names) >= MOST_ENTRIES:
            raise ArchiveRefused(f"it has more than {MOST_ENTRIES} entries")
        self._names.add(name)
        del self._buffer[:BLOCK]
        if kind == tarfile.DIRTYPE:
            return True
        self._left, self._padding, self._in_file = size, -size % BLOCK, True
        return Entry(name, size)

    def _size(self, info: tarfile.TarInfo) -> int:
        text = self._next.pop("size", None)
        size = info.size if text is None else int(text) if text.isascii() and text.isdecimal() else -1
        if not 0 <= size < 2**63 or (info.type == tarfile.DIRTYPE and size):
            raise ArchiveRefused("a header tells an impossible size")
        return size

    def _extension(self, info: tarfile.TarInfo) -> bool | None:
        if not 0 <= info.size <= _LARGEST_EXTENDED:
            raise ArchiveRefused("an extended header is too large")
        whole = BLOCK + info.size + -info.size % BLOCK
        if len(self._buffer) < whole:
            return None
        data = bytes(self._buffer[BLOCK : BLOCK + info.size])
        del self._buffer[:whole]
        if info.type == tarfile.XHDTYPE:
            self._next.update(_pax_records(data))
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self._next["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        if any(key.startswith("GNU.sparse") for key in self._next):
            raise ArchiveRefused("it has a sparse file", next_step="an image layout has plain files alone")
        return True


def _pax_records(data: bytes) -> dict[str, str]:
    """`<length> <key>=<value>\\n`, where the length counts the whole record."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        record = data[len(length) + 1 : size - 1]
        key, equals, value = record.partition(b"=")
        if not size or size > len(data) or data[size - 1 : size] != b"\n" or not equals:
            raise ArchiveRefused("an extended header is malformed")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[size:]
    return records


def _checked(name: str) -> str:
    """The name as a relative path without `.`; refused where it leads out."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or len(name) > _LONGEST_NAME:
        raise ArchiveRefused(f"the name {name[:200]!r} leads out of the archive, or is none")
    return "/".join(part for part in parts if part not in ("", "."))


def header(name: str, size_bytes: int) -> bytes:
    """The header of a regular file, readable for all and of no date: the same content, the same archive."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size_bytes: int) -> bytes:
    """What follows a file of that size."""
    return b"\0" * (-size_bytes % BLOCK)


TRAILER = b"\0" * (2 * BLOCK)
