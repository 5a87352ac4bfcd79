"""Which repositories anyone may read (I6).

A repository is public when its registry answers an anonymous HEAD of something in it; that is believed
for an hour. While the registry is dark the last verdict stands, because nobody can be asked. What is
not known to be public is passed through and never cached.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from tidegate_proxy.anonymous import Anonymous
from tidegate_proxy.descriptor import MANIFEST_TYPES
from tidegate_proxy.index import Index
from tidegate_proxy.reference import Repository
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.site import Site
from tidegate_proxy.upstream import UpstreamBroken, UpstreamUnreachable

BELIEVED_FOR = timedelta(hours=1)
REFUSAL_BELIEVED_FOR = timedelta(minutes=1)
_REFUSED = frozenset({401, 403})
_MAX_REFUSALS = 4096


class Publicness:
    """Tells whether a repository answers anonymously, asking its registry at most once an hour."""

    def __init__(
        self, *, anonymous: Anonymous, index: Index, now: Callable[[], datetime], patience_s: float
    ) -> None:
        self._anonymous = anonymous
        self._index = index
        self._now = now
        self._patience_s = patience_s
        self._asking: SingleFlight[tuple[str, str], bool] = SingleFlight()
        self._refused_at: dict[tuple[str, str], datetime] = {}

    async def close(self) -> None:
        """End what runs."""
        await self._asking.close()

    def known_public(self, site: Site, repository: Repository) -> bool:
        """Whether it is public by what is in memory: False may also mean that somebody has to be asked."""
        known_at = self._index.remembered_public(site.registry, str(repository))
        return known_at is not None and timedelta(0) <= self._now() - known_at < BELIEVED_FOR

    async def is_public(self, site: Site, repository: Repository, target: str) -> bool:
        """Whether anyone may read the repository; `target` is the path of something that should be in it."""
        known_at = await self._index.public_checked_at(site.registry, str(repository))
        now = self._now()
        if known_at is not None and timedelta(0) <= now - known_at < BELIEVED_FOR:
            return True
        if known_at is not None and self._anonymous.dark(site):
            return True
        key = (site.registry, str(repository))
        refused_at = self._refused_at.get(key)
        if refused_at is not None and timedelta(0) <= now - refused_at < REFUSAL_BELIEVED_FOR:
            return False
        try:
            return await self._asking.run(key, lambda: self._ask(site, repository, target))
        except (UpstreamUnreachable, UpstreamBroken):
            return known_at is not None

    async def _ask(self, site: Site, repository: Repository, target: str) -> bool:
        response = await self._anonymous.request(
            site,
            repository,
            "HEAD",
            target,
            {"Accept": ", ".join(MANIFEST_TYPES), "Accept-Encoding": "identity"},
            patience_s=self._patience_s,
        )
        await response.close()
        key = (site.registry, str(repository))
        if response.status < 400:
            await self._index.mark_public(*key, self._now())
            self._refused_at.pop(key, None)
            return True
        if response.status in _REFUSED:
            await self._index.mark_private(*key)
            if len(self._refused_at) >= _MAX_REFUSALS:
                self._refused_at.pop(next(iter(self._refused_at)))
            self._refused_at[key] = self._now()
        if response.status >= 500 or response.status == 429:
            raise UpstreamBroken(f"{site.authority} answers {response.status}")
        return False
