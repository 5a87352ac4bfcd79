"""The Accept field: what a client takes, independent of how it writes that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.accept import Accept

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

media_types = st.sampled_from([INDEX, MANIFEST, LIST, "application/json"])
members = st.builds(
    lambda media_range, weight: f"{media_range}{weight}",
    media_types | st.sampled_from(["*/*", "application/*"]),
    st.sampled_from(["", ";q=0", ";q=0.5", "; q=0.001", ";q=1.0", ";v=1;q=0.7"]),
)


@given(st.lists(members))
def test_str_and_parse_of_accept_are_inverse(values: list[str]) -> None:
    """C9: what we send upstream means what the client sent."""
    accept = Accept.parse(values)

    assert Accept.parse([str(accept)]) == accept


@given(st.lists(members), st.randoms(use_true_random=False))
def test_order_lines_and_case_make_no_difference(values: list[str], random) -> None:  # type: ignore[no-untyped-def]  # hypothesis types it so
    """C5: six lines in random order key the same manifest as one line."""
    shuffled = [value.upper() for value in values]
    random.shuffle(shuffled)

    assert Accept.parse(shuffled) == Accept.parse([", ".join(values)])


@pytest.mark.parametrize("values", [[], [""], [" , ,"], ["nonsense"], ["*/json"], [f"{INDEX};q=2"]])
def test_a_client_that_states_no_preference_takes_everything(values: list[str]) -> None:
    """C9: no field, an empty one, or one that cannot be read."""
    assert Accept.parse(values).allows(INDEX)


@pytest.mark.parametrize(
    ("values", "media_type", "weight"),
    [
        ([MANIFEST], MANIFEST, 1000),
        ([MANIFEST], INDEX, 0),
        ([MANIFEST], MANIFEST.upper() + "; charset=utf-8", 1000),
        ([f"{MANIFEST}, */*"], INDEX, 1000),
        (["application/*;q=0.5"], INDEX, 500),
        (["application/*"], "text/plain", 0),
        ([f"*/*, {INDEX};q=0"], INDEX, 0),
        ([f"*/*;q=0, {INDEX}"], INDEX, 1000),
        ([f"application/*;q=0.2, */*;q=0.9, {INDEX};q=0.1"], MANIFEST, 200),
        ([f'text/x;a="b, {INDEX}"'], INDEX, 0),
        ([f'text/x;a="unclosed, {INDEX}'], INDEX, 0),
        ([f"{INDEX};q=0.5", INDEX], INDEX, 1000),
        ([f"{INDEX};q=2", MANIFEST], INDEX, 0),
        ([f"{INDEX} ; Q=0.25"], INDEX, 250),
    ],
)
def test_the_most_specific_range_decides(values: list[str], media_type: str, weight: int) -> None:
    """C5, C9: RFC 9110 section 12.5.1, with containerd's `*/*` and refusals by q=0."""
    accept = Accept.parse(values)

    assert accept.weight(media_type) == weight
    assert accept.allows(media_type) == (weight > 0)


@given(st.lists(st.text()), st.text())
def test_no_field_value_makes_accept_raise(values: list[str], media_type: str) -> None:
    """I1: a client's text is data."""
    accept = Accept.parse(values)

    assert Accept.parse([str(accept)]) == accept
    assert 0 <= accept.weight(media_type) <= 1000
