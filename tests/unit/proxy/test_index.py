"""The index: what is put is found, also after a restart; a file that cannot be used costs only memory."""

import asyncio
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidegate_proxy.oci.descriptor import Descriptor
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.catalogue import Found
from tidegate_proxy.storage.index import Index, TagVariant
from unit.proxy.reader import until

NOON = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
A, B, C = Digest.of(b"a"), Digest.of(b"b"), Digest.of(b"c")
OCI, DOCKER = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
NGINX = ("docker.io", "library/nginx")


def _variant(media_type: str = OCI, digest: Digest = A, checked_at: datetime = NOON) -> TagVariant:
    return TagVariant(media_type=media_type, digest=digest, checked_at=checked_at)


def _descriptor(digest: Digest = A) -> Descriptor:
    return Descriptor(media_type=OCI, digest=digest, size_bytes=5)


@pytest.fixture(params=["remembered", "read back", "after a restart"])
def memory(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _later(index: Index, path: Path, memory: str) -> Index:
    """The same knowledge from memory, or from the file of a new index."""
    if memory == "remembered":
        return index
    await index.close()
    return Index.open(path, remembered=1 if memory == "read back" else 65_536)


async def test_descriptors_are_found_by_digest(tmp_path: Path, memory: str) -> None:
    """C9: HEAD is answered from what is known, without the blob."""
    index = Index.open(tmp_path / "index.sqlite")
    assert await index.descriptor(A) is None
    await index.put_descriptor(_descriptor(A))
    await index.put_descriptor(_descriptor(B))
    index = await _later(index, tmp_path / "index.sqlite", memory)

    assert await index.descriptor(A) == _descriptor(A)
    assert await index.descriptor(B) == _descriptor(B)
    await index.close()


async def test_a_tag_has_one_variant_per_media_type(tmp_path: Path, memory: str) -> None:
    """C5: putting one media type replaces that one and keeps the others."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.put_tag(*NGINX, "1.27", _variant(OCI, A))
    await index.put_tag(*NGINX, "1.27", _variant(DOCKER, A))
    await index.put_tag(*NGINX, "1.27", _variant(OCI, B, NOON + timedelta(hours=1)))
    await index.put_tag(*NGINX, "1.26", _variant(OCI, A))
    index = await _later(index, tmp_path / "index.sqlite", memory)

    assert set(await index.tag_variants(*NGINX, "1.27")) == {
        _variant(DOCKER, A),
        _variant(OCI, B, NOON + timedelta(hours=1)),
    }
    await index.close()


async def test_variants_put_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    """C5: two clients of different kinds pull one tag at once, over a cold memory."""
    index = Index.open(tmp_path / "index.sqlite")
    await asyncio.gather(
        index.put_tag(*NGINX, "1.27", _variant(OCI)), index.put_tag(*NGINX, "1.27", _variant(DOCKER))
    )

    assert set(await index.tag_variants(*NGINX, "1.27")) == {_variant(OCI), _variant(DOCKER)}
    await index.close()


async def test_a_dropped_tag_is_unknown(tmp_path: Path, memory: str) -> None:
    """C5: a push through us invalidates the tag."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.put_tag(*NGINX, "1.27", _variant())
    await index.drop_tag(*NGINX, "1.27")
    index = await _later(index, tmp_path / "index.sqlite", memory)

    assert await index.tag_variants(*NGINX, "1.27") == ()
    await index.close()


async def test_a_repository_is_public_until_it_is_marked_private(tmp_path: Path, memory: str) -> None:
    """C15, I6: what is not known to be public is private."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.mark_public("docker.io", "library/nginx", NOON)
    await index.mark_public("docker.io", "acme/secret", NOON)
    await index.mark_private("docker.io", "acme/secret")
    index = await _later(index, tmp_path / "index.sqlite", memory)

    assert await index.public_checked_at("docker.io", "library/nginx") == NOON
    assert await index.public_checked_at("docker.io", "acme/secret") is None
    assert await index.public_checked_at("docker.io", "never/seen") is None
    assert await index.public_checked_at("quay.io", "library/nginx") is None
    await index.close()


async def test_a_registry_has_something_public_as_long_as_one_repository_is(
    tmp_path: Path, memory: str
) -> None:
    """The dark-registry rule asks this of a whole registry."""
    index = Index.open(tmp_path / "index.sqlite")
    assert not await index.any_public("docker.io")
    for repository in ("a", "b"):
        await index.mark_public("docker.io", repository, NOON)
    await index.mark_private("docker.io", "a")
    assert await index.any_public("docker.io")
    await index.mark_private("docker.io", "b")
    index = await _later(index, tmp_path / "index.sqlite", memory)

    assert not await index.any_public("docker.io")
    await index.close()


async def _last_use(index: Index, digest: Digest) -> datetime | None:
    entry = await index.catalogue.entry(digest)
    return entry and entry.last_use


async def test_a_use_is_written_at_the_latest_when_the_index_closes(tmp_path: Path) -> None:
    """C14: eviction by last use needs the uses of the last run."""
    later = datetime.now(UTC) + timedelta(hours=1)
    index = Index.open(tmp_path / "index.sqlite")
    for digest in (A, B):
        index.catalogue.stored(digest, 5)
    index.touch(A, later)
    index.touch(A, later + timedelta(seconds=1))
    index.touch(B, later + timedelta(seconds=2))
    await index.close()
    index = Index.open(tmp_path / "index.sqlite")

    assert await _last_use(index, A) == later + timedelta(seconds=1)
    assert await _last_use(index, B) == later + timedelta(seconds=2)
    await index.close()


async def test_uses_are_written_in_batches_before_they_are_too_many(tmp_path: Path) -> None:
    """I8: a thousand hits make one transaction, and no more than that wait in memory."""
    index = Index.open(tmp_path / "index.sqlite")
    digests = [Digest.of(str(number).encode()) for number in range(3000)]
    await index.catalogue.found([Found(digest=digest, size_bytes=1, last_use=0) for digest in digests])
    for digest in digests:
        index.touch(digest, NOON)
    reader = sqlite3.connect(tmp_path / "index.sqlite")

    def written() -> int:
        count: int = reader.execute("SELECT count(*) FROM blobs WHERE last_use > 0").fetchone()[0]
        return count

    await until(lambda: written() == 2048)
    await index.close()
    assert written() == 3000
    reader.close()


async def test_a_look_up_does_not_wait_for_uses_to_be_written(tmp_path: Path) -> None:
    """The hot path: what is not remembered is read beside the writer; own writes are seen all the same."""
    index = Index.open(tmp_path / "index.sqlite", remembered=1)
    await index.put_descriptor(_descriptor(A))
    await index.put_descriptor(_descriptor(B))
    holder = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")  # the writer has to wait for as long as this one writes
    index.touch(A, NOON)
    index.catalogue.write_uses()

    async with asyncio.timeout(1):
        assert await index.descriptor(A) == _descriptor(A)
    holder.execute("ROLLBACK")
    writing = asyncio.create_task(index.put_descriptor(_descriptor(C)))
    await asyncio.sleep(0)
    index._descriptors.forget(C)
    assert await index.descriptor(C) == _descriptor(C)
    await writing
    holder.close()
    await index.close()


async def test_memory_is_bounded_and_the_file_knows_the_rest(tmp_path: Path) -> None:
    """I8: what memory had to forget is read again."""
    index = Index.open(tmp_path / "index.sqlite", remembered=2)
    digests = [Digest.of(str(number).encode()) for number in range(10)]
    for digest in digests:
        await index.put_descriptor(_descriptor(digest))

    for digest in digests:
        assert await index.descriptor(digest) == _descriptor(digest)
    await index.close()


async def test_a_hit_needs_no_thread(tmp_path: Path) -> None:
    """The hot path: a look-up that is remembered is answered while another thread holds the file."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.put_descriptor(_descriptor())
    looking_up = index.descriptor(A)

    with pytest.raises(StopIteration) as answer:
        looking_up.send(None)
    assert answer.value.value == _descriptor()
    await index.close()


async def test_an_older_read_does_not_undo_a_newer_write(tmp_path: Path) -> None:
    """A look-up that was under way while the tag moved must not bring the old one back."""
    index = Index.open(tmp_path / "index.sqlite")
    reading = asyncio.create_task(index.public_checked_at(*NGINX))
    await asyncio.sleep(0)
    await index.mark_public(*NGINX, NOON)
    await reading

    assert await index.public_checked_at(*NGINX) == NOON
    await index.close()


async def test_a_write_whose_caller_left_is_written(tmp_path: Path) -> None:
    """A client that goes away does not take the row with it that memory already shows."""
    index = Index.open(tmp_path / "index.sqlite")
    for number in range(50):
        writing = asyncio.create_task(index.mark_public("docker.io", str(number), NOON))
        await asyncio.sleep(0)
        writing.cancel()
    await index.close()
    index = Index.open(tmp_path / "index.sqlite")

    assert [await index.public_checked_at("docker.io", str(number)) for number in range(50)] == [NOON] * 50
    await index.close()


def _filled(path: Path) -> None:
    async def fill() -> None:
        index = Index.open(path)
        for number in range(2000):
            index.touch(Digest.of(str(number).encode()), NOON)
        await index.put_descriptor(_descriptor())
        await index.close()

    asyncio.run(fill())


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)


def _truncated(path: Path) -> None:
    _filled(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _overwritten(path: Path) -> None:
    _filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def _of_a_later_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.execute("CREATE TABLE future (x)")
    connection.close()


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tags (something, different)")
    connection.close()


@pytest.mark.parametrize("damage", [_garbage, _truncated, _overwritten, _of_a_later_version, _foreign])
def test_a_damaged_file_is_moved_aside_and_said(tmp_path: Path, damage: object) -> None:
    """I1: the agent starts and serves, a new file is begun, and somebody is told where the old one is."""
    path = tmp_path / "index.sqlite"
    assert callable(damage)
    damage(path)
    before = path.read_bytes()
    said: list[str] = []

    async def use() -> None:
        index = Index.open(path, say=said.append)
        assert await index.descriptor(A) is None
        await index.put_descriptor(_descriptor(A))
        await index.close()
        index = Index.open(path)
        assert await index.descriptor(A) == _descriptor(A)
        await index.close()

    asyncio.run(use())
    assert (tmp_path / "index.sqlite.damaged").read_bytes() == before
    assert len(said) == 1
    assert str(path) in said[0]
    assert "damaged" in said[0]


async def test_a_file_truncated_under_the_running_index_is_replaced(tmp_path: Path) -> None:
    """I1: from then on a new file is filled; nobody sees an error."""
    path = tmp_path / "index.sqlite"
    said: list[str] = []
    index = Index.open(path, say=said.append, remembered=1)
    await index.put_descriptor(_descriptor(A))
    for leftover in (path, path.with_name("index.sqlite-wal")):
        leftover.write_bytes(b"")
    await index.put_descriptor(_descriptor(B))
    await index.put_tag(*NGINX, "1.27", _variant())
    await index.close()
    index = Index.open(path)

    assert await index.tag_variants(*NGINX, "1.27") == (_variant(),)
    await index.close()


async def test_a_file_removed_under_the_running_index_is_begun_again(tmp_path: Path) -> None:
    """`rm -rf <state>/*` under a running agent."""
    path = tmp_path / "index.sqlite"
    index = Index.open(path, remembered=1)
    await index.put_descriptor(_descriptor(A))
    for leftover in tmp_path.glob("index.sqlite*"):
        leftover.unlink()
    await index.put_descriptor(_descriptor(B))
    await index.put_tag(*NGINX, "1.27", _variant())
    await index.close()
    index = Index.open(path)

    assert await index.tag_variants(*NGINX, "1.27") == (_variant(),)
    await index.close()


async def test_where_no_file_can_be_the_index_lives_in_memory(tmp_path: Path) -> None:
    """I1: a directory in the way costs what is remembered across restarts, not the agent."""
    (tmp_path / "index.sqlite").mkdir()
    said: list[str] = []
    index = Index.open(tmp_path / "index.sqlite", say=said.append, remembered=1)
    for digest in (A, B):
        await index.put_descriptor(_descriptor(digest))

    assert await index.descriptor(A) == _descriptor(A)
    assert len(said) == 1
    assert "memory" in said[0]
    await index.close()


async def test_only_we_may_read_the_file(tmp_path: Path) -> None:
    """I6: it names repositories, private ones later."""
    await Index.open(tmp_path / "index.sqlite").close()

    assert stat.S_IMODE((tmp_path / "index.sqlite").stat().st_mode) == 0o600


async def test_an_index_in_memory_returns_to_a_file_when_it_can(tmp_path: Path) -> None:
    """I1: the state directory was removed under the running agent, and is back: what was learned is kept."""
    state = tmp_path / "state"
    state.mkdir()
    said: list[str] = []
    index = Index.open(state / "index.sqlite", say=said.append, returns_every_s=0)
    for path in (*state.iterdir(), state):
        path.unlink() if path.is_file() else path.rmdir()
    await index.put_tag(*NGINX, "1", _variant())
    assert not state.exists()
    state.mkdir()
    index.catalogue.stored(A, 7)
    await index.put_tag(*NGINX, "2", _variant())
    await index.close()
    assert len(said) == 1
    index = Index.open(state / "index.sqlite")

    assert await index.tag_variants(*NGINX, "1") == await index.tag_variants(*NGINX, "2") == (_variant(),)
    assert index.catalogue.usage.stored_bytes == 7
    assert stat.S_IMODE((state / "index.sqlite").stat().st_mode) == 0o600
    await index.close()


async def test_a_closed_index_is_one_file(tmp_path: Path) -> None:
    """Nothing is left in a log beside it: it can be copied, and the next start replays nothing."""
    index = Index.open(tmp_path / "index.sqlite", remembered=1)
    await index.put_descriptor(_descriptor(A))
    await index.put_descriptor(_descriptor(B))
    assert await index.descriptor(A) == _descriptor(A)  # by the reader
    await index.close()

    assert [path.name for path in tmp_path.iterdir()] == ["index.sqlite"]
