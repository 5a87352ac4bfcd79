"""The configured upstreams in their order, and what status tells of them; nothing listens anywhere here."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tidegate_agent.config import UpstreamConfig
from tidegate_agent.upstreams import open_upstreams, upstreams_status
from tidegate_proxy.upstreams.direct import NameResolver
from tidegate_proxy.upstreams.tier_url import TierUrl
from tidegate_proxy.upstreams.tiers import STATUSES, Tiers

DIRECT = UpstreamConfig(kind="direct")
PROXY = UpstreamConfig(kind="connect", url=TierUrl.parse("http://node:s3cret@192.0.2.9:3128"))
STRICT = UpstreamConfig(kind="central", url=TierUrl.parse("https://192.0.2.8:5443"), fallback="deny")


async def opened(parts: AsyncExitStack, state_dir: Path, *entries: UpstreamConfig) -> Tiers:
    async def nowhere(_: str) -> list[str]:
        return []

    return open_upstreams(
        entries,
        parts,
        state_dir=state_dir,
        system=None,
        resolver=NameResolver(nowhere),
        exempt=lambda _: None,
        offline=lambda _: "",
    )


@pytest.mark.parametrize(
    ("entries", "kinds"),
    [
        ([], ["direct"]),
        ([PROXY], ["connect", "direct"]),
        ([DIRECT, PROXY], ["direct", "connect"]),
        ([PROXY, STRICT], ["connect", "central"]),
    ],
)
async def test_going_direct_comes_last_unless_it_is_listed_or_denied(
    tmp_path: Path, entries: list[UpstreamConfig], kinds: list[str]
) -> None:
    """T6, DESIGN 6: an empty configuration goes straight to the registries."""
    async with AsyncExitStack() as parts:
        tiers = await opened(parts, tmp_path, *entries)

        assert [each.kind for each in upstreams_status(tiers)] == kinds
        assert tiers.requests == {(kind, status): 0 for kind in kinds for status in STATUSES}


async def test_status_has_the_url_without_its_login(tmp_path: Path) -> None:
    """T8: and an upstream that nobody has met yet counts as well."""
    async with AsyncExitStack() as parts:
        first, *_ = upstreams_status(await opened(parts, tmp_path, PROXY))

    assert (first.url, first.healthy, first.reason) == ("http://192.0.2.9:3128", True, "")
