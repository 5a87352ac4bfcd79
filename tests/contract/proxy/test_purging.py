"""C20: what a purge takes, what it leaves, and that it breaks nobody who reads; a real store and index."""

from datetime import UTC, datetime

import pytest

from contract.proxy.test_importing import Cache, cache, image, tar  # noqa: F401 (fixtures)
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.operating.purging import NothingCached, Purging
from tidegate_proxy.storage.listings import Listing
from tidegate_proxy.storage.tag_rows import TagRows

LARGE = b"layer" * 200_000
SMALL = b"small"
CONFIG = b'{"architecture": "amd64", "os": "linux"}'  # of every image here


def purging(cache: Cache) -> Purging:  # noqa: F811
    rows = TagRows(cache.state_dir / "index.sqlite")
    return Purging(cache=cache.cache, rows=rows, registries=cache.registries)


async def test_who_reads_a_blob_goes_on_reading_it(cache: Cache) -> None:  # noqa: F811
    """C20, C14: it is counted as in use, nobody new finds it, and the reader gets every byte."""
    await cache.take(tar(image(LARGE[:900_000])))
    digest = Digest.of(LARGE[:900_000])
    reader = cache.cache.store.blob(digest)
    assert reader is not None

    done = await purging(cache).image(ImageName.parse("quay.io/team/tool:1"))

    assert done.in_use == 1 and cache.files() == set()
    assert cache.cache.store.blob(digest) is None
    with reader:
        assert Digest.of(b"".join([bytes(piece) async for piece in reader.stream()])) == digest


async def test_one_image_under_two_names_goes_with_the_last(cache: Cache) -> None:  # noqa: F811
    """C20: a second tag, and a second repository, each keep it."""
    for name in ("quay.io/team/tool:1", "quay.io/team/tool:2", "quay.io/team/other:1"):
        await cache.take(tar(image(SMALL, name=name)))
    kept = cache.files()

    for name in ("quay.io/team/tool:1", "quay.io/team/tool:2"):
        done = await purging(cache).image(ImageName.parse(name))
        assert (done.freed_bytes, cache.files(), done.tags) == (0, kept, [name])
    await purging(cache).image(ImageName.parse("quay.io/team/other:1"))

    assert cache.files() == set()


async def test_another_tag_of_the_repository_keeps_an_image(cache: Cache) -> None:  # noqa: F811
    """C20: alone, without another repository."""
    for name in ("quay.io/team/tool:1", "quay.io/team/tool:2"):
        await cache.take(tar(image(SMALL, name=name)))

    assert (await purging(cache).image(ImageName.parse("quay.io/team/tool:1"))).removed_blobs == 0
    assert (await purging(cache).image(ImageName.parse("quay.io/team/tool:2"))).kept_blobs == 0


async def test_another_repository_keeps_an_image_that_no_tag_of_its_names(cache: Cache) -> None:  # noqa: F811
    """C20: it was pulled there by its digest."""
    for name in ("quay.io/team/tool:1", "quay.io/team/other:1"):
        await cache.take(tar(image(SMALL, name=name)))
    await cache.cache.index.drop_tag("quay.io", "team/other", "1")

    assert (await purging(cache).image(ImageName.parse("quay.io/team/tool:1"))).removed_blobs == 0
    assert (await purging(cache).image(ImageName.parse("quay.io/team/other"))).kept_blobs == 0


async def test_a_purge_leaves_what_another_image_is_made_of(cache: Cache) -> None:  # noqa: F811
    """C20: shared layers and configs stay, and are told of."""
    await cache.take(tar(image(SMALL, b"one", name="quay.io/team/tool:1")))
    await cache.take(tar(image(SMALL, b"two", name="quay.io/team/other:1")))

    done = await purging(cache).image(ImageName.parse("quay.io/team/tool"))

    assert done.kept_blobs == 2 and done.kept_bytes == len(SMALL) + len(CONFIG)
    assert Digest.of(b"one").encoded not in cache.files()
    assert {Digest.of(each).encoded for each in (SMALL, b"two", CONFIG)} < cache.files()


@pytest.mark.parametrize("everything", [False, True])
async def test_lists_of_a_repository_go_with_it(cache: Cache, everything: bool) -> None:  # noqa: F811
    """C20, C22: the last answers of its registry, of tags and referrers; another repository keeps its own."""
    listings = cache.cache.index.listings
    listing = Listing(status=200, fields={}, body=b"{}", checked_at=datetime.now(UTC))
    for name in ("tool", "other"):
        await cache.take(tar(image(SMALL, name=f"quay.io/team/{name}:1")))
        await listings.put("quay.io", f"team/{name}", f"/v2/team/{name}/tags/list", listing)

    if everything:
        await purging(cache).everything()
    else:
        await purging(cache).image(ImageName.parse("quay.io/team/tool"))

    kept = [
        await listings.get("quay.io", f"team/{name}", f"/v2/team/{name}/tags/list")
        for name in ("tool", "other")
    ]
    assert kept == [None, None if everything else listing]


async def test_a_bare_digest_goes_whatever_needs_it(cache: Cache) -> None:  # noqa: F811
    """C20: for a blob that is damaged."""
    await cache.take(tar(image(SMALL)))

    assert (await purging(cache).blob(Digest.of(SMALL))).freed_bytes == len(SMALL)

    with pytest.raises(NothingCached):
        await purging(cache).blob(Digest.of(SMALL))
