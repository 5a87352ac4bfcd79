"""How long tags are believed."""

from datetime import UTC, datetime, timedelta

import pytest

from tidegate_proxy.registry.tag_tiers import TagTiers, Tier

NOW = datetime(2026, 12, 1, tzinfo=UTC)
TEN, DAY, NEVER = timedelta(minutes=10), timedelta(days=1), timedelta(0)
TIERS = TagTiers(
    [
        Tier(match="stable|latest", fresh_for=TEN, registry="quay.io"),
        Tier(match=r"v\d+(\.\d+)*", fresh_for=DAY, repository="library/*"),
        Tier(match="(stable|latest).*", fresh_for=timedelta(hours=1)),
    ]
)


@pytest.mark.parametrize(
    ("registry", "repository", "tag", "expected"),
    [
        ("quay.io", "team/tool", "stable", TEN),
        ("docker.io", "library/nginx", "stable", timedelta(hours=1)),
        ("quay.io", "team/tool", "stable-alpine", timedelta(hours=1)),
        ("docker.io", "library/nginx", "v1.27", DAY),
        ("docker.io", "library/deep/nginx", "v1.27", DAY),
        ("docker.io", "alice/nginx", "v1.27", NEVER),
        ("docker.io", "library/nginx", "v1.27-rc", NEVER),
        ("docker.io", "library/nginx", "xstable", NEVER),
    ],
)
def test_the_first_tier_that_matches_the_whole_tag_counts(
    registry: str, repository: str, tag: str, expected: timedelta
) -> None:
    """C5: by tag, registry and repository; without a match a tag is asked for each time."""
    assert TIERS.fresh_for(registry, repository, tag) == expected


def believed(tiers: TagTiers, age: timedelta) -> bool:
    return tiers.believes("quay.io", "team/tool", "stable", checked_at=NOW - age, now=NOW)


def test_a_tag_is_believed_for_its_time_less_a_tenth_at_most() -> None:
    """C5, C19: never longer than configured; not when it was learned in the future."""
    assert believed(TIERS, timedelta(0))
    assert believed(TIERS, TEN * 0.89)
    assert not believed(TIERS, TEN)
    assert not believed(TIERS, timedelta(seconds=-1))
    assert not TIERS.believes("quay.io", "a/b", "v1", checked_at=NOW, now=NOW)


def test_caches_that_learned_of_a_tag_together_ask_again_apart() -> None:
    """C19: a fleet that pulled one tag at one moment does not ask for it again at one moment."""
    at = TEN * 0.95
    tiers = [Tier(match="stable", fresh_for=TEN)]
    said = {believed(TagTiers(tiers, salt=str(number)), at) for number in range(64)}

    assert said == {True, False}


def test_other_tiers_take_effect_at_once() -> None:
    """C5: a reload."""
    tiers = TagTiers([Tier(match="stable", fresh_for=TEN)])
    before = tiers.fresh_for("quay.io", "a/b", "stable")
    tiers.replace([])

    assert (before, tiers.fresh_for("quay.io", "a/b", "stable")) == (TEN, NEVER)
