"""Repositories, tags and references: the distribution specification's grammar as it stands."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.reference import InvalidRepository, InvalidTag, Repository, Tag, parse_reference

# As the distribution specification writes them, apart from how the module under test does.
NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"


# Every shape of the grammar, in lengths that are quick to draw.
component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,3}", fullmatch=True)
names = st.lists(component, min_size=1, max_size=5).map("/".join)


@given(names)
def test_str_and_parse_of_a_repository_are_inverse(text: str) -> None:
    """C1: a name is kept as it was asked for."""
    repository = Repository.parse(text)

    assert str(repository) == text
    assert Repository.parse(str(repository)) == repository


@given(st.from_regex(TAG, fullmatch=True))
def test_str_and_parse_of_a_tag_are_inverse(text: str) -> None:
    """C5: a tag is kept as it was asked for, and reads as a reference to a tag."""
    tag = Tag.parse(text)

    assert str(tag) == text
    assert parse_reference(text) == Tag.parse(str(tag)) == tag


@given(st.binary().map(Digest.of))
def test_a_digest_after_manifests_reads_as_a_digest(digest: Digest) -> None:
    """C4: a reference with a colon is never taken for a tag."""
    assert parse_reference(str(digest)) == digest


@given(st.one_of(st.text(), st.text("aZ0._-/%\n\0", max_size=300)))
def test_any_text_is_a_repository_exactly_when_the_grammar_says_so(text: str) -> None:
    """C1: parse raises nothing but its own error."""
    well_formed = len(text) <= 255 and re.fullmatch(NAME, text, re.ASCII) is not None
    try:
        parsed = Repository.parse(text)
    except InvalidRepository:
        assert not well_formed
    else:
        assert well_formed and str(parsed) == text


@given(st.one_of(st.text(), st.text("aZ0._-/%\n\0", max_size=140)))
def test_any_text_is_a_tag_exactly_when_the_grammar_says_so(text: str) -> None:
    """C5: parse raises nothing but its own error."""
    well_formed = re.fullmatch(TAG, text, re.ASCII) is not None
    try:
        parsed = Tag.parse(text)
    except InvalidTag:
        assert not well_formed
    else:
        assert well_formed and str(parsed) == text


@pytest.mark.parametrize(
    "text",
    ["alpine", "library/alpine", "a/b/c/d/e", "a__b", "a---b", "a.b_c-d", "0", "manifests", "a" * 255],
)
def test_names_that_real_registries_hold_are_repositories(text: str) -> None:
    """C1: several slashes, double underscores and runs of dashes are legal."""
    assert Repository.parse(text).name == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "..",
        ".",
        "a..b",
        "a.",
        "-a",
        "a-",
        "a___b",
        "a._b",
        "Library/alpine",
        "library/alpinE",
        "a b",
        "a\0",
        "a\n",
        "a%2Fb",
        "%61",
        "a\\b",
        "a:b",
        "a@b",
        "ä",
        "a" * 256,
        "a/" * 100_000 + "a",
    ],
)
def test_a_name_outside_the_grammar_is_not_a_repository(text: str) -> None:
    """C1: nothing is trimmed, decoded or lower-cased to make it fit."""
    with pytest.raises(InvalidRepository):
        Repository.parse(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\0", "a\n", "a%20", "é", "a" * 129]
)
def test_a_text_outside_the_grammar_is_not_a_tag(text: str) -> None:
    """C5: 128 characters, and neither a dot nor a dash first."""
    with pytest.raises(InvalidTag):
        parse_reference(text)


def test_a_reference_with_a_colon_that_is_no_digest_is_an_invalid_digest() -> None:
    """C4: DIGEST_INVALID is what the client did wrong."""
    with pytest.raises(InvalidDigest):
        parse_reference("sha256:latest")
