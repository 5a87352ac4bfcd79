"""What gave no answer is dark until it gives one; somebody looks, so that no client has to wait.

While anybody asks about something dark it is looked at, each time after a longer pause where the pause may
grow; what nobody has asked about for a while is forgotten, and the next request finds out for itself. What
goes dark again soon after it came back is looked at later than before: it answers looks and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

EVERY_S = 1.0
INTEREST_S = 60.0
RELAPSE_S = 60.0
_MAX_DARK = 256

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Spell:
    """One time of being dark, from the last answer to the next."""

    looking: asyncio.Task[None]
    reason: str
    asked_at: float


class Darkness(Generic[K]):
    """Which of many are dark, and why.

    `look` says why one gives no answer now, or nothing when it does, within a bounded time. The pauses
    between looks grow from `every_s` to `longest_s`; `interest_s` of None never forgets.
    """

    def __init__(
        self,
        look: Callable[[K], Awaitable[str]],
        *,
        every_s: float = EVERY_S,
        longest_s: float | None = None,
        interest_s: float | None = INTEREST_S,
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._longest_s = every_s if longest_s is None else longest_s
        self._interest_s = interest_s
        self._spells: dict[K, _Spell] = {}
        self._past: dict[K, tuple[int, float]] = {}  # how often it relapsed, and when it last came back

    def covers(self, key: K) -> bool:
        """Whether it is dark as far as is known."""
        spell = self._spells.get(key)
        if spell is None:
            return False
        spell.asked_at = asyncio.get_running_loop().time()
        return True

    def reasons(self) -> tuple[str, ...]:
        """Why each is dark, the one that is so for the longest time first."""
        return tuple(spell.reason for spell in self._spells.values())

    def begins(self, key: K, reason: str) -> None:
        """It gave no answer."""
        spell = self._spells.get(key)
        if spell is not None:
            spell.reason = reason
            return
        if len(self._spells) >= _MAX_DARK:
            return
        now = asyncio.get_running_loop().time()
        relapses, back_at = self._past.pop(key, (-1, now))
        relapses = relapses + 1 if now - back_at < RELAPSE_S else 0
        looking = asyncio.create_task(self._until_light(key, relapses), name=f"look at {key}")
        self._spells[key] = _Spell(looking, reason, now)
        self._past[key] = (relapses, now)
        while len(self._past) > _MAX_DARK:
            del self._past[next(iter(self._past))]

    def ends(self, key: K) -> None:
        """It answered."""
        spell = self._spells.pop(key, None)
        if spell is not None:
            spell.looking.cancel()
            self._came_back(key)

    async def close(self) -> None:
        """Look no more."""
        looking, self._spells = [spell.looking for spell in self._spells.values()], {}
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _until_light(self, key: K, looks: int) -> None:
        loop = asyncio.get_running_loop()
        spell = self._spells[key]
        while self._interest_s is None or loop.time() - spell.asked_at < self._interest_s:
            await asyncio.sleep(min(self._longest_s, self._every_s * 2.0 ** min(looks, 16)))
            looks += 1
            reason = await self._look(key)
            if not reason:
                self._came_back(key)
                break
            spell.reason = reason
        with suppress(KeyError):
            del self._spells[key]

    def _came_back(self, key: K) -> None:
        relapses, _ = self._past.get(key, (0, 0.0))
        self._past[key] = (relapses, asyncio.get_running_loop().time())
