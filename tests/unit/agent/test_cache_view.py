"""What operators are shown of the cache, and a pull's progress."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tidegate_agent.cache.archive_files import pieces_of, write_archive
from tidegate_agent.cache.progress import follow
from tidegate_agent.cache.view import explained, imported, listed, purged
from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_layout import blob_name
from tidegate_proxy.oci.tar_stream import TRAILER, header, padding
from tidegate_proxy.operating.forms import (
    BlobFact,
    Explained,
    Fact,
    Image,
    Images,
    Imported,
    PullEvent,
    Purged,
    State,
)

REF = "docker.io/library/nginx:1.27"
LAYER = f"sha256:{'ab' * 32}"


def image(state: State = "complete", present: int = 7) -> Image:
    return Image(
        reference=REF,
        registry="docker.io",
        repository="library/nginx",
        tag="1.27",
        digest=LAYER,
        media_type="application/vnd.oci.image.index.v1+json",
        state=state,
        blobs=7,
        blobs_present=present,
        platforms=["linux/amd64"],
        size_bytes=1000,
        bytes=1000,
        last_use="2026-01-02T03:04:05+00:00",
        checked_at=None,
    )


def test_a_list_has_one_line_per_image_and_says_how_to_go_on() -> None:
    """C20: complete or how much of it, and the next page."""
    page = Images(images=[image(), image("partial", 3)], next="WyJ4Il0=")

    lines = list(listed(page, more="tidegate cache list"))

    assert len(lines) == 4
    assert "complete, linux/amd64" in lines[1] and "partial (3 of 7)" in lines[2]
    assert lines[3] == "more: tidegate cache list --after WyJ4Il0="


def test_an_empty_cache_says_how_to_fill_it() -> None:
    assert "tidegate pull" in next(listed(Images(images=[], next=None), more=""))


def test_a_purge_says_what_stayed_and_why() -> None:
    """C20: freed, kept for others, still being read."""
    done = Purged(tags=[REF], removed_blobs=2, freed_bytes=1234, kept_blobs=1, kept_bytes=10, in_use=1)

    text = "\n".join(purged(done))

    assert REF in text and "1234 bytes" in text and "other cached images" in text and "being read" in text


def test_an_explanation_has_its_verdict_first_and_what_to_type() -> None:
    """C20: the outlook, because of what, and each blob that is not whole."""
    blob = BlobFact(
        digest=LAYER, media_type="x/y", size_bytes=100, state="partial", present_bytes=40, platform=""
    )
    answer = Explained(
        reference=REF,
        outlook="miss",
        because="1 of 7 blobs and manifests are not here",
        next_step=f"tidegate pull {REF}",
        facts=[Fact(about="steering", ok=True, detail="steered")],
        blobs=[blob],
    )

    lines = list(explained(answer))

    assert lines[0].endswith("the next pull is a miss")
    assert lines[2].strip() == f"tidegate pull {REF}"
    assert "40 bytes of 100 bytes" in lines[-1]


def test_an_import_says_what_there_is_now() -> None:
    assert imported(Imported(images=[REF], blobs=0, bytes=0, remarks=["no linux/arm64"])) == [
        f"imported {REF}",
        "nothing new in it",
        "no linux/arm64",
    ]


EVENTS = [
    PullEvent(event="manifest", ref=REF, digest=LAYER, size_bytes=500),
    PullEvent(event="blob", ref=REF, digest=LAYER, size_bytes=100, state="waiting"),
    PullEvent(event="blob", ref=REF, digest=LAYER, bytes=50, size_bytes=100, state="fetching"),
    PullEvent(event="blob", ref=REF, digest=LAYER, bytes=100, size_bytes=100, state="done"),
    PullEvent(event="done", ref=REF, state="done"),
    PullEvent(event="failed", ref="quay.io/x:1", cause="it is private", next_step="add [[credential]]"),
    PullEvent(event="end"),
]


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    """O5: beginnings and ends, no escape sequences, nothing for the steps between."""
    out = io.StringIO()

    failures = follow(EVENTS, Console(file=out, force_terminal=False))

    assert out.getvalue().splitlines() == [
        f"{REF}: {LAYER}",
        f"{REF}: abababababab 100 bytes pulled",
        f"{REF}: pulled",
    ]
    assert [failure.cause for failure in failures] == ["it is private"]


def test_progress_is_a_bar_per_layer_on_a_terminal() -> None:
    """O5: the layer's name, how much of it, and how it ended."""
    out = io.StringIO()

    failures = follow(EVENTS, Console(file=out, force_terminal=True, width=120))

    assert "nginx:1.27 abababababab" in out.getvalue() and "100/100 bytes" in out.getvalue()
    assert len(failures) == 1


@dataclass
class Source:
    """Reads pieces of some bytes."""

    data: bytes

    def read(self, size: int) -> bytes:
        piece, self.data = self.data[: min(size, 700)], self.data[min(size, 700) :]
        return piece


def archive(content: bytes, claimed: bytes) -> bytes:
    files = {"index.json": b"{}", blob_name(Digest.of(claimed)): content}
    packed = (header(name, len(each)) + each + padding(len(each)) for name, each in files.items())
    return b"".join(packed) + TRAILER


def test_an_export_is_a_file_or_a_folder_and_reads_back(tmp_path: Path) -> None:
    """C21: both forms of a layout, and a folder makes the same archive again."""
    whole = archive(b"layer" * 1000, b"layer" * 1000)

    write_archive(Source(whole).read, str(tmp_path / "x.tar"))
    write_archive(Source(whole).read, f"{tmp_path}/folder/")
    (tmp_path / "folder" / "oci-layout").write_bytes(b"{}")

    assert (tmp_path / "x.tar").read_bytes() == whole
    assert (tmp_path / "folder" / blob_name(Digest.of(b"layer" * 1000))).read_bytes() == b"layer" * 1000
    assert b"".join(pieces_of(str(tmp_path / "x.tar"))) == whole
    assert whole[: -len(TRAILER)] in b"".join(pieces_of(f"{tmp_path}/folder"))


@pytest.mark.parametrize(
    "damaged",
    [archive(b"other", b"layer"), archive(b"layer", b"layer")[:1200]],
    ids=["another digest", "cut"],
)
def test_a_damaged_export_gets_no_name(tmp_path: Path, damaged: bytes) -> None:
    """C21, I2: what is not what its name says is no file, and what was there before stays."""
    (tmp_path / "x.tar").write_bytes(b"old")

    with pytest.raises(TidegateError):
        write_archive(Source(damaged).read, str(tmp_path / "x.tar"))

    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    assert (tmp_path / "x.tar").read_bytes() == b"old"


def test_a_folder_that_is_no_layout_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(TidegateError) as refusal:
        list(pieces_of(str(tmp_path)))

    assert "skopeo copy" in refusal.value.next_step


def test_a_link_in_a_layout_is_not_followed(tmp_path: Path) -> None:
    """C21: whoever prepared the folder does not get root to send another file."""
    (tmp_path / "oci-layout").write_bytes(b"{}")
    (tmp_path / "index.json").symlink_to("/etc/shadow")

    with pytest.raises(TidegateError, match="cannot be read"):
        list(pieces_of(str(tmp_path)))
