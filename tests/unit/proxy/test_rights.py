"""Rights that were proven: whose, for what, for how long."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.registry.rights import Rights
from tidegate_proxy.site import Site

SITE = Site(registry="docker.io", host="registry-1.docker.io")
REPOSITORY = Repository.parse("alice/private")
TOKEN = "Bearer opaque"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def jwt(**claims: object) -> str:
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "RS256"}, claims)
    )
    return f"Bearer {'.'.join(parts)}.c2ln"


class Clocks:
    def __init__(self) -> None:
        self.s = 0.0
        self.now = NOW

    def rights(self, limit: int = 100) -> Rights:
        return Rights(clock=lambda: self.s, now=lambda: self.now, limit=limit)


@pytest.mark.parametrize(
    ("site", "repository", "authorization"),
    [
        (SITE, "alice/private", "Bearer other"),
        (SITE, "alice/private", "Basic opaque"),
        (SITE, "alice/other", TOKEN),
        (Site(registry="quay.io", host="quay.io"), "alice/private", TOKEN),
        (
            Site(registry="docker.io", host="registry-1.docker.io", port=80, scheme="http"),
            "alice/private",
            TOKEN,
        ),
    ],
)
def test_a_right_is_one_credentials_to_one_repository(
    site: Site, repository: str, authorization: str
) -> None:
    """C15, I6."""
    rights = Clocks().rights()
    rights.accepted(SITE, REPOSITORY, TOKEN)

    assert rights.holds(SITE, REPOSITORY, TOKEN)
    assert not rights.holds(site, Repository.parse(repository), authorization)


@pytest.mark.parametrize(
    ("authorization", "lasts_s"),
    [
        (TOKEN, 60),
        ("Basic YWxpY2U6c2VjcmV0", 60),
        (jwt(exp=NOW.timestamp() + 20), 20),
        (jwt(exp=NOW.timestamp() + 3600), 60),
        (jwt(sub="alice"), 60),
        (jwt(exp="soon"), 60),
        ("Bearer a.b.c", 60),
        ("Bearer a.\u00e4.c", 60),
    ],
)
def test_a_right_lasts_a_minute_or_as_long_as_the_token_says(authorization: str, lasts_s: int) -> None:
    """C15: whatever stands in it; a client's word only ever shortens it."""
    clocks = Clocks()
    rights = clocks.rights()
    rights.accepted(SITE, REPOSITORY, authorization)

    clocks.s = lasts_s - 0.5
    assert rights.holds(SITE, REPOSITORY, authorization)
    clocks.s = lasts_s + 0.5
    assert not rights.holds(SITE, REPOSITORY, authorization)


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_a_clock_that_is_stepped_makes_no_right_last_longer(step: timedelta) -> None:
    """C15: by wall time a token may have ended; that no time passed a step cannot hide."""
    clocks = Clocks()
    rights = clocks.rights()
    clocks.now = NOW + step
    rights.accepted(SITE, REPOSITORY, token := jwt(exp=NOW.timestamp() + 300))
    clocks.s = 61.0

    assert not rights.holds(SITE, REPOSITORY, token)


def test_a_refusal_ends_a_right() -> None:
    """C15, I6."""
    rights = Clocks().rights()
    rights.accepted(SITE, REPOSITORY, TOKEN)
    rights.refused(SITE, REPOSITORY, TOKEN)

    assert not rights.holds(SITE, REPOSITORY, TOKEN)


def test_so_many_are_remembered_and_no_credential_is_among_them() -> None:
    """I8, O4: the oldest go; what is kept is of no use to who finds it."""
    rights = Clocks().rights(limit=10)
    tokens = [f"Bearer token-{number}" for number in range(25)]
    for token in tokens:
        rights.accepted(SITE, REPOSITORY, token)

    assert len(rights) == 10
    assert [rights.holds(SITE, REPOSITORY, token) for token in tokens] == [False] * 15 + [True] * 10
    assert "token-" not in repr(vars(rights))
