"""Which repository holds what: kept over a restart, bounded, forgotten with the content."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.index_file import IndexFile, Row
from tidegate_proxy.storage.members import Members

A, B = Digest.of(b"a"), Digest.of(b"b")
NGINX = ("docker.io", "library/nginx")
OTHERS = [("docker.io", "library/other"), ("quay.io", "library/nginx")]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_a_repository_holds_is_no_other_repositorys(tmp_path: Path, restarted: bool) -> None:
    """C15, I6: nor the same name's at another registry; also after a restart."""
    index = Index.open(tmp_path / "index.sqlite")
    await index.members.learn(*NGINX, [A])
    if restarted:
        await index.close()
        index = Index.open(tmp_path / "index.sqlite")

    assert index.members.remembered(*NGINX, A) is not restarted
    assert await index.members.holds(*NGINX, A)
    assert index.members.remembered(*NGINX, A)
    assert not await index.members.holds(*NGINX, B)
    for other in OTHERS:
        assert not await index.members.holds(*other, A)
        assert not index.members.remembered(*other, A)
    await index.close()


async def test_what_is_learned_after_it_was_unknown_is_known(tmp_path: Path) -> None:
    """C15: an answer of no is remembered, and is no more once there is a yes."""
    index = Index.open(tmp_path / "index.sqlite")
    assert not await index.members.holds(*NGINX, A)
    await index.members.learn(*NGINX, [A, B])

    assert await index.members.holds(*NGINX, A)
    await index.close()


async def test_rows_go_with_the_content_or_from_one_place(tmp_path: Path) -> None:
    """C14, C15, C18: evicted everywhere, deleted in one repository; also what memory has."""
    index = Index.open(tmp_path / "index.sqlite")
    for place in (NGINX, *OTHERS):
        await index.members.learn(*place, [A, B])
    await index.members.forget([A], NGINX)
    assert [await index.members.holds(*place, A) for place in (NGINX, *OTHERS)] == [False, True, True]

    await index.forget_missing([A, B], lambda digest: digest == B)
    assert not index.members.remembered(*OTHERS[0], A)
    await index.close()
    index = Index.open(tmp_path / "index.sqlite")
    assert not any([await index.members.holds(*place, A) for place in (NGINX, *OTHERS)])
    assert await index.members.holds(*NGINX, B)
    await index.close()


async def test_there_is_a_limit_to_the_rows(tmp_path: Path) -> None:
    """C14, I8: any of them go; the file stays usable."""
    index = Index.open(tmp_path / "index.sqlite")
    file = IndexFile(tmp_path / "index.sqlite", lambda _: None)

    async def at_once(function, *arguments):  # type: ignore[no-untyped-def]  # as the protocol has it
        return function(*arguments)

    async def select(sql: str, row: Row) -> Sequence[Row]:
        return file.select(sql, row)

    members = Members(file, at_once, select, remembered=10, limit_rows=2000)
    for number in range(30):
        digests = [Digest.of(b"%d %d" % (number, each)) for each in range(500)]
        await members.learn(*NGINX, digests)

    ((rows,),) = file.select("SELECT count(*) FROM members", ())
    assert isinstance(rows, int)
    assert 1000 < rows < 4000
    file.close()
    await index.close()
