"""docker-registry-proxy's manifest cache in our words."""

from datetime import timedelta

import pytest

from tidegate_agent.central.environment import translate
from tidegate_agent.tags import open_tiers
from tidegate_core.errors import UsageError

ON = {"ENABLE_MANIFEST_CACHE": "true"}


def fresh_for(environment: dict[str, str], tag: str) -> timedelta:
    return open_tiers(translate(environment).tags).fresh_for("docker.io", "library/nginx", tag)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("stable", timedelta(minutes=10)),
        ("stable-alpine", timedelta(minutes=10)),
        ("1.27.3", timedelta(days=60)),
        ("v1.27", timedelta(days=60)),
        ("latest", timedelta(hours=1)),
        ("unstable", timedelta(hours=1)),
    ],
)
def test_an_enabled_manifest_cache_has_its_defaults(tag: str, expected: timedelta) -> None:
    """C5, T1: patterns are for the beginning of a tag, in the order primary, secondary, default."""
    assert fresh_for(ON, tag) == expected


def test_variables_change_them() -> None:
    """C5, T1: an empty pattern leaves its tier out; times are nginx's."""
    said = ON | {
        "MANIFEST_CACHE_PRIMARY_REGEX": "rolling",
        "MANIFEST_CACHE_PRIMARY_TIME": "1h 30m",
        "MANIFEST_CACHE_SECONDARY_REGEX": "",
        "MANIFEST_CACHE_DEFAULT_TIME": "90",
    }

    assert fresh_for(said, "rolling-2") == timedelta(minutes=90)
    assert fresh_for(said, "1.2.3") == timedelta(seconds=90)


def test_without_the_switch_they_mean_nothing_and_that_is_said() -> None:
    """T1: as there."""
    translated = translate({"MANIFEST_CACHE_DEFAULT_TIME": "1h"})

    assert translated.tags == ()
    assert any("ENABLE_MANIFEST_CACHE=true" in warning for warning in translated.warnings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MANIFEST_CACHE_PRIMARY_REGEX", "("),
        ("MANIFEST_CACHE_PRIMARY_TIME", "soon"),
        ("MANIFEST_CACHE_SECONDARY_TIME", ""),
        ("MANIFEST_CACHE_DEFAULT_TIME", "1h!"),
    ],
)
def test_a_malformed_one_is_named(name: str, value: str) -> None:
    """T1: with what to type instead."""
    with pytest.raises(UsageError) as caught:
        translate(ON | {name: value})

    assert name in str(caught.value)
    assert name in caught.value.next_step
