"""The bytes that are there, as spans: the same as a set of positions, whatever order they come in."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.storage.extents import Extents, Span

SIZE = 60
spans = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=20)


@given(spans, st.integers(0, SIZE), st.integers(0, SIZE))
def test_extents_are_what_a_set_of_positions_is(added: list[tuple[int, int]], first: int, end: int) -> None:
    """C10: gaps, runs and sizes, by comparison with the plainest form."""
    extents, positions = Extents(added), {each for span in added for each in range(*span)}

    assert {each for span in extents.spans() for each in range(*span)} == positions
    assert extents.size_bytes == len(positions)
    gaps = list(extents.missing(first, end))
    assert [each for gap in gaps for each in range(*gap)] == [
        each for each in range(first, end) if each not in positions
    ]
    assert extents.run_end(first) == next(each for each in range(first, SIZE + 2) if each not in positions)


@given(spans)
def test_spans_are_in_order_and_never_touch(added: list[tuple[int, int]]) -> None:
    """What touches is one span: a blob that came from front to back has one, however many pieces it had."""
    found = list(Extents(added).spans())

    assert all(before.end < after.first for before, after in itertools.pairwise(found))
    assert all(span.size_bytes > 0 for span in found)


def test_gaps_leave_out_what_is_there() -> None:
    extents = Extents([(10, 20), (30, 40)])

    assert list(extents.missing(0, 50)) == [Span(0, 10), Span(20, 30), Span(40, 50)]
    assert list(extents.missing(12, 18)) == []
