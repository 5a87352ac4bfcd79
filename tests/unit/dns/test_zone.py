"""The zone of steered names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.errors import UsageError
from tidegate_dns.zone import Zone

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
ZONE = Zone.of(["registry-1.docker.io", "GHCR.io.", "*.gcr.io"])


@pytest.mark.parametrize(
    "qname",
    ["registry-1.docker.io", "Registry-1.Docker.IO", "ghcr.io", "ghcr.io.", "eu.gcr.io", "EU.gcr.io."],
)
def test_a_registrys_name_is_covered_in_any_case_with_or_without_the_final_dot(qname: str) -> None:
    """N2, RFC 4343."""
    assert ZONE.covers(qname)


@pytest.mark.parametrize(
    "qname",
    [
        "docker.io",
        "x.registry-1.docker.io",
        "gcr.io",
        "a.b.gcr.io",
        ".gcr.io",
        "xgcr.io",
        "",
        ".",
        "*.docker.io",
    ],
)
def test_neither_parents_nor_deeper_names_are_covered(qname: str) -> None:
    """N2: `*.x` is exactly one label."""
    assert not ZONE.covers(qname)


@pytest.mark.parametrize(
    "pattern",
    [
        "192.0.2.1",
        "2001:db8::1",
        "",
        ".",
        "*",
        "*.",
        "a.*.io",
        "**.io",
        "a..b",
        "-a.io",
        "a" * 64 + ".io",
        "a b",
    ],
)
def test_a_pattern_that_no_query_can_match_is_refused_with_what_to_write(pattern: str) -> None:
    """N2: an address is never looked up."""
    with pytest.raises(UsageError) as refusal:
        Zone.of([pattern])

    assert refusal.value.next_step


@given(st.lists(LABEL, min_size=1, max_size=5))
def test_a_name_is_covered_by_itself_and_by_its_parents_wildcard_only(labels: list[str]) -> None:
    """N2."""
    name = ".".join(labels)

    assert Zone.of([name]).covers(name)
    assert Zone.of([f"*.{name}"]).covers(f"one.{name}")
    assert not Zone.of([f"*.{name}"]).covers(name)
    assert not Zone.of([f"*.{name}"]).covers(f"one.two.{name}")
