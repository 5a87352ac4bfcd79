"""Since when the trust store vouches for a host, through reissues, restarts and gaps."""

from pathlib import Path

import pytest

from tidegate_agent.clients import TrustedSince

OLD, NEW = ("gcr.io", "ghcr.io"), ("gcr.io", "ghcr.io", "quay.io")


class Anchor:
    """The date of the anchor's file."""

    def __init__(self) -> None:
        self.at: float | None = 100.0


@pytest.fixture
def anchor() -> Anchor:
    return Anchor()


def test_a_host_counts_from_when_it_came_and_not_from_the_reissue(tmp_path: Path, anchor: Anchor) -> None:
    """N8, N9: who read the old certificate trusts us for the old hosts, and for those alone."""
    since = TrustedSince(tmp_path, lambda: anchor.at)
    assert since("ghcr.io") == since("quay.io") == since() == 100
    since.holds(OLD, reissued=False)

    anchor.at = 200  # the anchor is copied,
    assert since("ghcr.io") == 200  # and nobody knows yet what is in the bundle
    since.holds(NEW, reissued=True)
    anchor.at = 202  # and dated again
    since.holds(NEW, reissued=False)

    assert (since("ghcr.io"), since("eu.gcr.io"), since("quay.io"), since()) == (100, 100, 202, 202)
    again = TrustedSince(tmp_path, lambda: anchor.at)
    again.holds(NEW, reissued=False)
    assert (again("ghcr.io"), again("quay.io")) == (100, 202)


def test_a_host_that_went_and_came_back_counts_from_then(tmp_path: Path, anchor: Anchor) -> None:
    """N9: in between a program may have read a certificate without it."""
    since = TrustedSince(tmp_path, lambda: anchor.at)
    for at, names in ((100, NEW), (200, OLD), (300, NEW)):
        anchor.at = at
        since.holds(names, reissued=at > 100)

    assert (since("ghcr.io"), since("quay.io")) == (100, 300)


@pytest.mark.parametrize("gap", ["lost", "restart", "no file"])
def test_a_gap_makes_everything_count_from_the_anchor(tmp_path: Path, anchor: Anchor, gap: str) -> None:
    """N9: where nobody saw the store hold it, somebody may have read the store without it."""
    since = TrustedSince(tmp_path, lambda: anchor.at)
    since.holds(OLD, reissued=False)
    if gap == "lost":
        since.lost()
    else:
        if gap == "no file":
            (tmp_path / "trusted-since.json").write_text("?")
        since = TrustedSince(tmp_path, lambda: anchor.at)
    anchor.at = 200

    since.holds(NEW, reissued=gap == "lost")

    assert since("ghcr.io") == since("quay.io") == 200


def test_without_a_store_nobody_trusts_us(tmp_path: Path, anchor: Anchor) -> None:
    """N9."""
    anchor.at = None
    since = TrustedSince(tmp_path, lambda: anchor.at)
    since.holds(OLD, reissued=False)

    assert since("ghcr.io") is None
