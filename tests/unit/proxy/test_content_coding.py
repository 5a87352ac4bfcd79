"""gzip taken off on the way: every way it can be cut into chunks, and every way it can be broken."""

import gzip
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.upstreams.content_coding import decoded, is_coded, is_gzipped
from tidegate_proxy.upstreams.upstream import UpstreamBroken


async def arriving(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def decode(*pieces: bytes) -> list[bytes]:
    return [piece async for piece in decoded(arriving(pieces))]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(1, 40))
async def test_whatever_way_it_arrives_it_is_what_was_coded(members: list[bytes], step: int) -> None:
    """RFC 1952, 2.2: a file is a series of members; chunks end anywhere."""
    coded = b"".join(gzip.compress(member, mtime=0) for member in members)
    pieces = [coded[at : at + step] for at in range(0, len(coded), step)]

    assert b"".join(await decode(*pieces)) == b"".join(members)


async def test_a_piece_is_never_large_however_well_it_was_compressed() -> None:
    """I8: 64 MiB of zeros are 64 KiB on the way; they leave in small pieces."""
    pieces = await decode(gzip.compress(bytes(64 << 20)))

    assert sum(map(len, pieces)) == 64 << 20
    assert max(map(len, pieces)) <= 256 * 1024


@pytest.mark.parametrize("cut", [1, 9, 15, 100, -9, -8, -1])
async def test_one_that_ends_early_is_no_whole_one(cut: int) -> None:
    """I2: also in its header and in its trailer, where all of the content has come."""
    coded = gzip.compress(random.Random(1).randbytes(1000))
    with pytest.raises(UpstreamBroken):
        await decode(coded[:cut])


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(b"x" * 100, mtime=0)[:-8] + bytes(8)])
async def test_what_is_no_gzip_is_told(body: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        await decode(body)


async def test_an_empty_body_is_empty() -> None:
    assert await decode() == []


@pytest.mark.parametrize(
    ("coding", "coded", "gzipped"),
    [
        (None, False, False),
        ("identity", False, False),
        ("gzip", True, True),
        (" GZIP ", True, True),
        ("x-gzip", True, True),
        ("zstd", True, False),
        ("gzip, gzip", True, False),
    ],
)
def test_only_gzip_is_known(coding: str | None, coded: bool, gzipped: bool) -> None:
    headers = {} if coding is None else {"Content-Encoding": coding}

    assert (is_coded(headers), is_gzipped(headers)) == (coded, gzipped)
