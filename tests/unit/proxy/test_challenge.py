"""WWW-Authenticate: challenges as real registries write them, and whatever else arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.challenge import Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/lab:pull"'

challenges = st.builds(
    Challenge,
    st.sampled_from(["Bearer", "Basic", "Negotiate"]),
    st.dictionaries(st.sampled_from(["realm", "service", "scope", "error"]), st.text()),
)


@given(st.lists(challenges))
def test_str_and_parse_of_challenges_are_inverse(written: list[Challenge]) -> None:
    """C16: several in one line or in one each, with commas and quotes inside values."""
    assert list(parse_challenges(map(str, written))) == written
    assert list(parse_challenges([", ".join(map(str, written))])) == written


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            HUB,
            [
                (
                    "Bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/lab:pull",
                    },
                )
            ],
        ),
        (
            'bearer Realm="https://a/t" , SCOPE="repository:a:pull,push",error="invalid_token"',
            [
                (
                    "Bearer",
                    {"realm": "https://a/t", "scope": "repository:a:pull,push", "error": "invalid_token"},
                )
            ],
        ),
        ("Basic", [("Basic", {})]),
        ('Basic realm="say \\"hi\\""', [("Basic", {"realm": 'say "hi"'})]),
        (
            'Basic realm="a", Bearer realm="b",service=c',
            [("Basic", {"realm": "a"}), ("Bearer", {"realm": "b", "service": "c"})],
        ),
        ('Negotiate YII=, Basic realm="a"', [("Negotiate", {}), ("Basic", {"realm": "a"})]),
        ("Basic, Negotiate", [("Basic", {}), ("Negotiate", {})]),
        (
            "Bearer realm=https://quay.io/v2/auth,service=q",
            [("Bearer", {"realm": "https://quay.io/v2/auth", "service": "q"})],
        ),
        ('Bearer realm="https://a/t" service="s"', [("Bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Bearer realm="first",realm="second"', [("Bearer", {"realm": "first"})]),
        (', ,Bearer realm=""', [("Bearer", {"realm": ""})]),
        ('Bearer realm="https://a/t",service="unclosed', [("Bearer", {"realm": "https://a/t"})]),
        ('realm="nobody asks"', []),
        ("", []),
    ],
)
def test_a_line_of_challenges_is_read(value: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """C16, C17: what the grammar allows, and what registries send beside it."""
    read = parse_challenges([value])

    assert [(challenge.scheme, dict(challenge.parameters)) for challenge in read] == expected


@given(st.lists(st.one_of(st.text(), st.text('Basic realm="\\, =', max_size=60))))
def test_no_field_value_makes_the_parser_raise(values: list[str]) -> None:
    """C16: an origin's text is data."""
    for challenge in parse_challenges(values):
        assert challenge.scheme
