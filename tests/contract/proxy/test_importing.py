"""Archives from strangers meet a real store and index; the registry does not answer.

C21, I2, I6: nothing wrong gets a name, nothing refused leaves a trace, no archive opens what is another's.
"""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_layout import REF_NAME, blob_name
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.operating.exporting import export_of, layout_of
from tidegate_proxy.operating.importing import Importing
from tidegate_proxy.operating.pulling import Wanted
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.site import Registries, Registry, Site
from tidegate_proxy.upstreams.upstream import UpstreamResponse, UpstreamUnreachable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
NAME = ImageName.parse("quay.io/team/tool:1")
LIMIT = 1 << 20
ALL = Wanted(platforms=(), all_platforms=True)


class Dark:
    """An upstream where nobody answers."""

    kind = "direct"

    def dark(self, site: Site) -> bool:
        return True

    async def request(
        self, site: Site, method: str, target: str, headers: Mapping[str, str], **_: object
    ) -> UpstreamResponse:
        raise UpstreamUnreachable(site, "it is dark")


class Cache:
    def __init__(self, cache: PullThroughCache, state_dir: Path) -> None:
        self.cache = cache
        self.state_dir = state_dir
        self.registries = Registries([Registry(name="quay.io", hosts=("quay.io",))])
        self.importing = Importing(
            cache=cache, registries=self.registries, limit_bytes=LIMIT, now=lambda: datetime.now(UTC)
        )

    async def take(
        self, archive: bytes, *, at_once: int = 4096, name_as: ImageName | None = None
    ) -> list[str]:
        async def pieces() -> AsyncIterator[bytes]:
            for first in range(0, len(archive), at_once):
                yield archive[first : first + at_once]

        return (await self.importing.archive(pieces(), name_as=None, public=True)).images

    def files(self) -> set[str]:
        return {path.name for path in self.state_dir.glob("blobs/*/*/*")}

    def is_clean(self) -> bool:
        return not self.files() and not list((self.state_dir / "partial").iterdir())


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    async with AsyncExitStack() as parts:
        opened = await PullThroughCache.open(
            parts,
            state_dir=tmp_path,
            durability="relaxed",
            stale_max=timedelta(days=1),
            upstream=Dark(),
            fetch_ended=lambda _: None,
            say=lambda _: None,
        )
        yield Cache(opened, tmp_path)


def described(content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def image(*layers: bytes, name: str = str(NAME), absent: tuple[bytes, ...] = ()) -> dict[str, bytes]:
    """The files of a layout with one image; `absent` layers are named, and do not come."""
    config = b'{"architecture": "amd64", "os": "linux"}'
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(config, CONFIG),
            "layers": [described(layer, LAYER) for layer in (*layers, *absent)],
        }
    ).encode()
    entry = described(manifest, MANIFEST) | {"annotations": {REF_NAME: name}}
    files = {blob_name(Digest.of(each)): each for each in (config, manifest, *layers)}
    return files | {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
    }


def tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("at_once", [100, 4096])
async def test_an_image_is_taken_and_comes_out_the_same(cache: Cache, at_once: int) -> None:
    """C21: what was imported is exported again without any registry, byte for byte."""
    files = image(b"layer" * 1000, b"")
    assert await cache.take(tar(files), at_once=at_once) == [str(NAME)]

    export = await export_of(cache.cache, cache.registries, NAME, ALL)
    written = b"".join([bytes(piece) async for piece in layout_of(export, cache.cache.store)])

    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        out = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    blobs = {name: content for name, content in files.items() if name.startswith("blobs/")}
    assert {name: out[name] for name in out if name.startswith("blobs/")} == blobs
    assert await cache.take(written) == [str(NAME)]


def with_file(name: str, content: bytes = b"x") -> bytes:
    return tar({**image(b"layer"), name: content})


def flipped() -> bytes:
    files = image(b"layer" * 100)
    name = blob_name(Digest.of(b"layer" * 100))
    return tar({**files, name: b"Layer" + files[name][5:]})


def linked() -> bytes:
    buffer = io.BytesIO(tar(image(b"layer")))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        info = tarfile.TarInfo(blob_name(Digest.of(b"other")))
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/shadow"
        archive.addfile(info)
    return buffer.getvalue()


def doubled() -> bytes:
    buffer = io.BytesIO(tar(image(b"layer")))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        info = tarfile.TarInfo("index.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    return buffer.getvalue()


def claims(size: int) -> bytes:
    info = tarfile.TarInfo(blob_name(Digest.of(b"huge")))
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096


HOSTILE = {
    "a name that leads out": with_file("../../blobs/x"),
    "an absolute name": with_file("/etc/passwd"),
    "a flipped bit": flipped(),
    "a link": linked(),
    "two indexes": doubled(),
    "a blob of exabytes": claims(1 << 62),
    "a blob larger than the cache": claims(LIMIT + 1),
    "more bytes than the cache may take": with_file("README", b"x" * LIMIT),
    "an index of megabytes": tar({"index.json": b"[" * (5 << 18) * 4}),
    "no index": tar({"oci-layout": b"{}"}),
    "no manifest": tar({"index.json": image()["index.json"]}),
    "a layer that does not come": tar(image(b"layer", absent=(b"another's",))),
    "cut in the middle": tar(image(b"layer" * 1000))[:3000],
    "an unknown registry": tar(image(b"layer", name="unknown.test/x:1")),
    "garbage": b"garbage" * 1000,
    "nothing": b"",
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_archive_is_refused_and_leaves_nothing(cache: Cache, archive: bytes) -> None:
    """C21, I2: refused in words; no blob, no unfinished file, no tag and no public repository is left."""
    with pytest.raises(TidegateError):
        await cache.take(archive)

    assert cache.is_clean()
    assert await cache.cache.index.tag_variants("quay.io", "team/tool", "1") == ()
    assert await cache.cache.index.public_checked_at("quay.io", "team/tool") is None


async def test_what_cannot_fit_is_refused_before_it_comes(cache: Cache) -> None:
    """C21: by its header alone, not when the disk is full."""
    with pytest.raises(TidegateError, match="more than fits"):
        await cache.take(claims(LIMIT + 1))


async def test_an_archive_cannot_name_what_is_somebody_elses(cache: Cache) -> None:
    """I6: what another repository has in the store does not become this one's by its digest."""
    secret = b"a private layer"
    assert await cache.cache.store.put(Digest.of(secret), secret)

    with pytest.raises(TidegateError, match="not in the archive"):
        await cache.take(tar(image(b"layer", absent=(secret,))))

    assert not await cache.cache.index.members.holds("quay.io", "team/tool", Digest.of(secret))
    assert cache.files() == {Digest.of(secret).encoded}


async def test_what_no_image_needs_does_not_stay(cache: Cache) -> None:
    """C21: blobs beside the image go again, and files that are no blobs are never written."""
    extra = b"nobody's"
    await cache.take(tar({**image(b"layer"), blob_name(Digest.of(extra)): extra, "manifest.json": b"[]"}))

    assert Digest.of(extra).encoded not in cache.files()
    assert Digest.of(b"layer").encoded in cache.files()


async def test_an_import_counts_as_public_only_until_the_registry_can_be_asked(cache: Cache) -> None:
    """I6: the operator's word is as old as to be checked by the first answer of the registry."""
    await cache.take(tar(image(b"layer")))

    believed = await cache.cache.index.public_checked_at("quay.io", "team/tool")
    site = cache.registries.by_namespace("quay.io")
    assert site is not None and believed is not None
    assert not cache.cache.readable.known(site, NAME.repository)
