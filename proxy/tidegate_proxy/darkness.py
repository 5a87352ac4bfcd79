"""Sites that gave no answer are dark until one comes; somebody looks, so that no client has to wait.

While anybody asks about a dark site it is looked at once a second; when nobody has for a minute it is
forgotten, and the next request finds out for itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tidegate_proxy.site import Site

EVERY_S = 1.0
INTEREST_S = 60.0
_MAX_SITES = 256


class Darkness:
    """Which sites are dark; `look` tells whether one answers now, within a bounded time."""

    def __init__(
        self,
        look: Callable[[Site], Awaitable[bool]],
        *,
        every_s: float = EVERY_S,
        interest_s: float = INTEREST_S,
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._interest_s = interest_s
        self._asked_at: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def covers(self, site: Site) -> bool:
        """Whether the site is dark as far as is known."""
        if site.authority not in self._looking:
            return False
        self._asked_at[site.authority] = asyncio.get_running_loop().time()
        return True

    def begins(self, site: Site) -> None:
        """The site gave no answer."""
        if site.authority in self._looking or len(self._looking) >= _MAX_SITES:
            return
        self._asked_at[site.authority] = asyncio.get_running_loop().time()
        self._looking[site.authority] = asyncio.create_task(
            self._until_light(site), name=f"look at {site.authority}"
        )

    def ends(self, site: Site) -> None:
        """The site answered."""
        looking = self._looking.pop(site.authority, None)
        if looking is not None:
            looking.cancel()
            self._asked_at.pop(site.authority, None)

    async def close(self) -> None:
        """Look no more."""
        looking, self._looking = list(self._looking.values()), {}
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _until_light(self, site: Site) -> None:
        loop = asyncio.get_running_loop()
        answers = False
        while not answers and loop.time() - self._asked_at[site.authority] < self._interest_s:
            await asyncio.sleep(self._every_s)
            answers = await self._look(site)
        with suppress(KeyError):
            del self._looking[site.authority], self._asked_at[site.authority]
