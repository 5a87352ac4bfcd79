"""What the store does over time: surveys its files, and evicts what its limits do not allow.

Failure policy: no pull waits for this or fails of it. Where other programs take the disk the cache gives
way, until it is empty if need be; then nothing is stored until there is room again, which is looked for
every few seconds. What cannot be removed is passed over.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.catalogue import Entry
from tidegate_proxy.storage.eviction import Occupancy, chosen, excess
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.limits import Limits
from tidegate_proxy.storage.occupancy import occupancy
from tidegate_proxy.storage.store import Store
from tidegate_proxy.storage.survey import Surveyed, survey

BEGINS_AFTER_S = 1.0  # the start of the process comes first
LOOKS_EVERY_S = 5.0
_LEFTOVERS_SHARE = 8
"""Unfinished blobs may take an eighth where room is wanted."""
_LOOKS_AT_MOST_EVERY_S = 0.2
_SURVEYS_AT_MOST_EVERY_S = 60.0
_SURVEYS_AT_MOST_SHARE = 20  # a survey takes at most one part in so many of the time
_EVICTS_AT_ONCE = 64
_FAILS_AT_MOST = 1024


class Upkeep:
    """One store's; `run` it as a task."""

    def __init__(self, store: Store, index: Index, limits: Limits, *, say: Callable[[str], None]) -> None:
        """`say` is told, in a sentence, what an operator should know."""
        self._store = store
        self._index = index
        self._limits = limits
        self._say = say
        self._said: set[str] = set()
        self._survey_not_before = 0.0
        self._called = asyncio.Event()
        store.largest_bytes = limits.max_size_bytes

    def look_soon(self) -> None:
        """Something was stored, or could not be."""
        self._called.set()

    async def run(self, *, begin_after_s: float = BEGINS_AFTER_S) -> None:
        """Survey, then keep the limits, looking when called and every few seconds; does not return."""
        await asyncio.sleep(begin_after_s)
        while True:
            if self._index.catalogue.wants_survey and time.monotonic() >= self._survey_not_before:
                await self.survey()
            await self.make_room()
            await asyncio.sleep(_LOOKS_AT_MOST_EVERY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOKS_EVERY_S):
                    await self._called.wait()
            self._called.clear()

    async def survey(self) -> None:
        """Compare files and rows, and say what was not as it should be."""
        began = time.monotonic()
        seen = await survey(self._store, self._index)
        took = time.monotonic() - began
        pause_s = max(_SURVEYS_AT_MOST_EVERY_S, _SURVEYS_AT_MOST_SHARE * took)
        self._survey_not_before = time.monotonic() + pause_s
        for sentence in _told(seen):
            self._say(sentence)

    async def make_room(self) -> None:
        """Evict what is due now, a batch at a time; then say whether anything may be stored."""
        limits, usage = self._limits, await self._index.catalogue.settled()
        now = await self._store.run(self._occupancy)
        if now is None:
            return  # no state directory, nothing to keep within
        due = excess(limits, now)
        if due.must:
            # What nobody finished goes before what somebody may use again.
            await self._store.run(self._store.trim_leftovers, limits.max_size_bytes // _LEFTOVERS_SHARE)
            now = await self._store.run(self._occupancy) or now
            due = excess(limits, now)
        slack_bytes = due.should - due.must
        freed_bytes = 0
        failed: set[Digest] = set()
        while due.should > 0 and len(failed) < _FAILS_AT_MOST:
            candidates = await self._oldest(failed)
            victims = chosen(candidates, due, slack_bytes=slack_bytes)
            if not victims:
                break
            removed = await self._store.run(self._remove, victims)
            failed.update(victim.digest for victim in victims if victim.digest not in removed)
            await self._index.forget_missing(list(removed), self._store.holds)
            usage.evicted_bytes += sum(removed.values())
            freed_bytes += sum(removed.values())
            due = due.less(sum(victim.size_bytes for victim in victims if victim.digest in removed))
        self._store.spare_bytes = now.free_bytes + freed_bytes - limits.watermark(now.disk_bytes)
        if self._store.spare_bytes >= 0:
            self._store.no_room = None
        else:
            await self._store.run(self._store.trim_leftovers, 0)
            self._store.no_room = "less than cache.min_free is free on its file system"
            self._say_once(f"nothing is stored: {self._store.no_room}, and nothing is left to evict")

    async def _oldest(self, but_not: set[Digest]) -> list[Entry]:
        """The next ones that nobody reads: of what is read the space would not come free."""
        limit = _EVICTS_AT_ONCE + self._store.count_read() + len(but_not)
        oldest = await self._index.catalogue.oldest(limit)
        free = (
            each for each in oldest if each.digest not in but_not and not self._store.is_read(each.digest)
        )
        return [each for each, _ in zip(free, range(_EVICTS_AT_ONCE), strict=False)]

    def _occupancy(self) -> Occupancy | None:
        return occupancy(
            self._store.state_dir,
            stored_bytes=self._index.catalogue.usage.stored_bytes,
            largest_bytes=self._limits.max_size_bytes,
        )

    def _remove(self, victims: Sequence[Entry]) -> dict[Digest, int]:
        """Take their names away; returns those that have none now, and the bytes this freed."""
        removed = {}
        for victim in victims:
            with suppress(OSError):
                removed[victim.digest] = self._store.remove(victim.digest)
        return removed

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def _told(seen: Surveyed) -> list[str]:
    told = []
    if seen.added:
        kinds = f"{seen.added} blobs of the store, {seen.manifests} of them manifests"
        told.append(f"the index did not know {kinds}: it does now")
    if seen.damaged:
        told.append(f"{seen.damaged} damaged manifests were removed from the store")
    if seen.unidentified:
        told.append(f"{seen.unidentified} files among the blobs are none: left alone, and not counted")
    return told
