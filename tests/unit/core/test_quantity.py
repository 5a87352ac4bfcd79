"""Sizes and durations: what is accepted, and that text and value are each other's inverse."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.quantity import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20GiB", 20 * 2**30),
        ("500MB", 500 * 10**6),
        ("0", 0),
        ("512", 512),
        ("1B", 1),
        ("3kB", 3000),
        ("1TiB", 2**40),
    ],
)
def test_a_size_is_read_with_binary_and_decimal_units(text: str, size_bytes: int) -> None:
    """DESIGN 8: sizes."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "20G", "GiB", "-1", "1.5GiB", "1 GiB", "1gib", "٣MB", "1" * 21, "1GiB\n"]
)
def test_a_size_in_any_other_form_is_refused(text: str) -> None:
    """DESIGN 8: nothing is guessed; 20G could be either of two sizes."""
    with pytest.raises(ValueError, match="is not a size such as"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**63))
def test_the_text_of_a_size_reads_back_as_the_size(size_bytes: int) -> None:
    """DESIGN 8."""
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_the_text_of_a_size_is_the_shortest_exact_one() -> None:
    """DESIGN 8."""
    assert [format_size(size) for size in (2**30, 10**9, 1536, 1)] == ["1GiB", "1GB", "1536B", "1B"]


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("10m", timedelta(minutes=10)),
        ("3s", timedelta(seconds=3)),
        ("30d", timedelta(days=30)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("250ms", timedelta(milliseconds=250)),
        ("0", timedelta(0)),
    ],
)
def test_a_duration_is_read_with_its_units(text: str, duration: timedelta) -> None:
    """DESIGN 8: times."""
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "10", "m", "30m1h", "1m1m", "-1s", "1.5h", "1h 30m", "9" * 18 + "d"])
def test_a_duration_in_any_other_form_is_refused(text: str) -> None:
    """DESIGN 8: units in falling order, each once."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0)))
def test_the_text_of_a_duration_reads_back_as_the_duration(duration: timedelta) -> None:
    """DESIGN 8."""
    assert parse_duration(format_duration(duration)) == duration
