"""Tar archives from strangers: what an image layout needs is read, and nothing else."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.tar_stream import TRAILER, ArchiveRefused, Entry, Piece, TarReader, header, padding


def read(archive: bytes, *, at_once: int = 1 << 16) -> dict[str, bytes]:
    """The files, fed in pieces of that size."""
    reader, files, name = TarReader(), {}, ""
    for first in range(0, len(archive), at_once):
        for event in reader.feed(archive[first : first + at_once]):
            match event:
                case Entry(name, _):
                    files[name] = b""
                case Piece(data, _):
                    files[name] += data
    reader.end()
    return files


def archive_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def file(
    name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content)
    return info, content


LONG = f"blobs/sha512/{'f' * 128}"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("at_once", [1, 7, 512, 1 << 16])
def test_files_are_read_whatever_the_pieces(form: int, at_once: int) -> None:
    """C21: long names by pax and by GNU's way, empty files, directories, `./`."""
    folder = tarfile.TarInfo("./blobs")
    folder.type = tarfile.DIRTYPE
    archive = archive_of(
        (folder, b""), file("./index.json", b"{}"), file(LONG, b"x" * 1000), file("empty", b""), form=form
    )

    assert read(archive, at_once=at_once) == {"index.json": b"{}", LONG: b"x" * 1000, "empty": b""}


@given(st.lists(st.binary(max_size=2000), max_size=5), st.integers(1, 3000))
def test_what_is_written_reads_back(contents: list[bytes], at_once: int) -> None:
    files = {f"blobs/sha256/{number:064x}": content for number, content in enumerate(contents)}
    archive = b"".join(
        header(name, len(content)) + content + padding(len(content)) for name, content in files.items()
    )

    assert read(archive + TRAILER, at_once=at_once) == files
    with tarfile.open(fileobj=io.BytesIO(archive + TRAILER)) as tar:
        assert tar.getnames() == list(files)


@pytest.mark.parametrize(
    "member",
    [
        file("../../etc/passwd", b"x"),
        file("/etc/passwd", b"x"),
        file("blobs/../../x", b"x"),
        file("index.json", b"", tarfile.SYMTYPE, "/etc/shadow"),
        file("index.json", b"", tarfile.LNKTYPE, "/etc/shadow"),
        file("index.json", b"", tarfile.CHRTYPE),
        file("index.json", b"", tarfile.FIFOTYPE),
        file("x" * 2000, b"x"),
    ],
    ids=lambda member: f"{member[0].name[:20]} {member[0].type!r}",
)
def test_what_no_layout_needs_is_refused(member: tuple[tarfile.TarInfo, bytes]) -> None:
    """C21: names that lead out, links and devices."""
    with pytest.raises(ArchiveRefused):
        read(archive_of(member))


def test_a_name_that_comes_twice_is_refused() -> None:
    """C21: two readers of such an archive may take another one of both."""
    with pytest.raises(ArchiveRefused, match="twice"):
        read(archive_of(file("index.json", b"{}"), file("./index.json", b"[]")))


def test_an_archive_that_is_cut_is_refused_anywhere() -> None:
    archive = archive_of(file("index.json", b"{}" * 400))

    for length in (0, 100, 512, 700, 1500):
        with pytest.raises(ArchiveRefused):
            read(archive[:length])


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"])
def test_a_compressed_archive_is_told_how_to_unpack(start: bytes) -> None:
    with pytest.raises(ArchiveRefused) as refusal:
        read(start + b"\0" * 1000)

    assert "first" in refusal.value.next_step


def test_extended_headers_are_bounded_and_checked() -> None:
    """C21: a pax header of a gigabyte, an impossible size, records that do not add up, sparse files."""
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(ArchiveRefused, match="too large"):
        read(huge.tobuf())
    for records in (b"11 size=-1\n", b"99 path=x\n", b"x", b"28 GNU.sparse.realsize=4000\n"):
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, len(records)
        archive = info.tobuf() + records + padding(len(records)) + header("y", 0) + TRAILER
        with pytest.raises(ArchiveRefused):
            read(archive)


@given(st.binary(min_size=512, max_size=4096))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    try:
        read(garbage)
    except ArchiveRefused as refusal:
        assert refusal.cause
