"""What a body is healed of, by cause; the causes are label values of `tidegate_healed_total`."""

import random

import pytest

from tidegate_proxy.fetching.healing import HealedBody, Patience
from tidegate_proxy.fetching.origin import OriginRefused, OriginUnreachable
from tidegate_proxy.oci.byte_range import Closed, From
from unit.proxy.memory_origin import MemoryOrigin
from unit.proxy.place import HASTY

BLOB = random.Random(6).randbytes(300_000)


async def all_of(body: HealedBody) -> bytes:
    await body.open()
    pieces = []
    while piece := await body.read():
        pieces.append(bytes(piece))
    await body.close()
    return b"".join(pieces)


async def test_a_heal_is_counted_by_what_broke_and_what_came_after() -> None:
    """C12: cut in the middle; the redirect's signature has expired, then the registry is not to be had."""
    origin = MemoryOrigin(content=BLOB, cuts=[100_000])
    body = HealedBody(origin, From(0), HASTY)
    await body.open()
    origin.refusals = [OriginRefused(403), OriginUnreachable("nobody there")]
    pieces = []
    while piece := await body.read():
        pieces.append(bytes(piece))

    assert b"".join(pieces) == BLOB
    assert body.healed == {"truncated": 1, "refused": 1, "unreachable": 1}
    assert origin.reads == [0, 100_000, 100_000, 100_000], "asked anew each time, redirects and all"
    await body.close()


@pytest.mark.parametrize("status", [403, 404, 429, 500, 502, 503, 504])
async def test_an_error_in_the_middle_is_not_the_end(status: int) -> None:
    """C12: 5xx, 429 and an expired signature are asked again, from the next missing byte."""
    origin = MemoryOrigin(content=BLOB, cuts=[100_000])
    body = HealedBody(origin, From(0), HASTY)
    await body.open()
    origin.refusals = [OriginRefused(status)] * (HASTY.attempts - 1)
    pieces = []
    while piece := await body.read():
        pieces.append(bytes(piece))

    assert b"".join(pieces) == BLOB
    await body.close()


async def test_silence_is_counted_as_such() -> None:
    """C12: no byte for N seconds."""
    patience = Patience(silence_s=0.02)
    body = HealedBody(MemoryOrigin(content=BLOB, pause_at=100_000, pauses_once=True), From(0), patience)

    assert await all_of(body) == BLOB
    assert body.healed == {"stalled": 1}


async def test_a_size_that_was_wrong_once_is_got_over() -> None:
    """C12: an error page with a length, or another upstream's other blob; the next answer is right again."""
    origin = MemoryOrigin(content=BLOB, cuts=[100_000], sizes_told=[len(BLOB), 5])
    body = HealedBody(origin, From(0), HASTY)
    assert await all_of(body) == BLOB
    assert body.healed == {"truncated": 1, "size": 1}
    assert origin.open_bodies == 0


async def test_a_range_is_resumed_as_what_is_left_of_it() -> None:
    """C10, C12: the end of the range stays where it was."""
    origin = MemoryOrigin(content=BLOB, cuts=[150_000])

    assert await all_of(HealedBody(origin, Closed(100_000, 199_999), HASTY)) == BLOB[100_000:200_000]
    assert origin.reads == ["bytes=100000-199999", "bytes=150000-199999"]


async def test_a_range_shorter_than_asked_for_is_asked_on() -> None:
    """C10: RFC 9110 14.2 lets a server send less than was asked for."""
    origin = MemoryOrigin(content=BLOB, longest_range_bytes=30_000)

    assert await all_of(HealedBody(origin, Closed(100_000, 199_999), HASTY)) == BLOB[100_000:200_000]
