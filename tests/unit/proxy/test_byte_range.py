"""Byte ranges as RFC 9110 section 14 has them: what is not one is ignored, never guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.byte_range import (
    Closed,
    Extent,
    From,
    RangeRequest,
    Suffix,
    Unsatisfiable,
    parse_content_range,
    parse_range,
)

positions = st.integers(0, 10**18 - 1)
ranges = st.one_of(
    positions.map(From),
    positions.map(Suffix),
    st.tuples(positions, positions).map(lambda pair: Closed(min(pair), max(pair))),
)


@given(ranges)
def test_str_and_parse_of_a_range_are_inverse(asked: RangeRequest) -> None:
    """C10: what we ask an origin for is what we would read."""
    assert parse_range(str(asked)) == asked


near = st.integers(0, 40)
near_ranges = st.one_of(
    near.map(From),
    near.map(Suffix),
    st.tuples(near, near).map(lambda pair: Closed(min(pair), max(pair))),
)


@given(near_ranges, st.binary(max_size=30))
def test_a_resolved_range_selects_the_bytes_that_slicing_does(asked: RangeRequest, body: bytes) -> None:
    """C10: inclusive positions, clamped to the end; unsatisfiable exactly when nothing is selected."""
    match asked:
        case From(first):
            expected = body[first:]
        case Closed(first, last):
            expected = body[first : last + 1]
        case Suffix(length):
            expected = body[-length:] if length else b""

    match asked.resolve(len(body)):
        case Extent() as extent:
            assert body[extent.first : extent.last + 1] == expected
            assert extent.length == len(expected) > 0
            assert parse_content_range(extent.content_range(len(body))) == (
                extent.first,
                extent.last,
                len(body),
            )
            assert parse_content_range(extent.content_range(None)) == (extent.first, extent.last, None)
        case Unsatisfiable() as refused:
            assert expected == b""
            assert refused.content_range() == f"bytes */{len(body)}"


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("bytes=50000000-", From(50_000_000)),
        ("bytes=0-0", Closed(0, 0)),
        ("bytes=-5", Suffix(5)),
        ("Bytes= 1-2 ", Closed(1, 2)),
        ("bytes=007-", From(7)),
        ("bytes=0-" + "9" * 5000, Closed(0, 10**18)),
        ("bytes=" + "9" * 5000 + "-", From(10**18)),
    ],
)
def test_a_single_byte_range_is_read(header: str, asked: RangeRequest) -> None:
    """C10: also one with a number that no file reaches."""
    assert parse_range(header) == asked


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=2-1",
        "bytes=0-1,3-4",
        "bytes=0-1,",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1 -2",
        "bytes=--1",
        "bytes=٣-٤",
        "bytes=0-1\n",
        "bytes 0-1",
        "items=0-1",
        "byteſ=0-1",
    ],
)
def test_any_other_range_is_ignored(header: str | None) -> None:
    """C10: the answer is then the whole, which is always right."""
    assert parse_range(header) is None


@given(st.one_of(st.text(), st.text("bytes=0123456789-, */")))
def test_no_field_value_makes_the_parsers_raise(header: str) -> None:
    """C10: a peer's text is data."""
    parse_range(header)
    parse_content_range(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes */100",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes 0-9",
        "bytes=0-9/10",
        "items 0-9/10",
        "bytes 0-9/-1",
    ],
)
def test_a_content_range_that_contradicts_itself_is_none(header: str) -> None:
    """C12: a resumed download trusts only an answer that says where it starts."""
    assert parse_content_range(header) is None
