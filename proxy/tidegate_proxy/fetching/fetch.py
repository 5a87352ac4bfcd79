"""Single flight for blobs: at most one fetch per digest, however many readers, whoever leaves first.

`Fetches` owns the tasks. A reader that is cancelled leaves its fetch running; `close` ends them all. Between
processes an `Election` decides. This module does not decide who may read.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate_proxy.fetching.election import Election, OneProcess
from tidegate_proxy.fetching.filling import Filling
from tidegate_proxy.fetching.healing import Patience
from tidegate_proxy.fetching.origin import Origin, OriginRefused, OriginUnreachable
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.fetching.transfer import Transfer
from tidegate_proxy.fetching.turns import Pace
from tidegate_proxy.oci.byte_range import RangeRequest
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What fetches may cost: each takes a connection, a descriptor and about 2 MiB while it runs.

    A blob that is one too many is still served, but neither shared nor stored. `ranges` are asked for at
    once, of all blobs together, each in a connection of its own; `background` blobs that were read in ranges
    are completed at once, when none was read for `quiet_s`.
    """

    fetches: int = 128
    ranges: int = 32
    background: int = 2
    quiet_s: float = 2.0
    patience: Patience = field(default_factory=Patience)


class Fetches:
    """The fetches in flight over one store."""

    def __init__(
        self,
        store: Store,
        *,
        limits: FetchLimits | None = None,
        observe: Callable[[FetchEnded], None] | None = None,
        election: Election | None = None,
    ) -> None:
        self._store = store
        self._limits = limits or FetchLimits()
        self._observe = observe or _unobserved
        self._election = election or OneProcess()
        self._pace = Pace(
            ranges=asyncio.Semaphore(self._limits.ranges),
            background=asyncio.Semaphore(self._limits.background),
            quiet_s=self._limits.quiet_s,
        )
        self._fillings: dict[Digest, Filling] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def join(self, digest: Digest, origin: Origin, wanted: RangeRequest | None = None) -> Transfer:
        """Follow the fetch of a blob, or start it; returns once the origin has answered.

        `wanted` is what this reader will read; None is the whole.

        Raises OriginRefused or OriginUnreachable of this origin, or of an equal one that was asked
        first. A reader whose origin differs from one that failed asks its own.
        """
        while True:
            filling = (
                self._fillings.get(digest)
                or self._stored(digest, origin)
                or self._start(digest, origin, wanted)
            )
            try:
                await asyncio.shield(filling.started)
            except (OriginRefused, OriginUnreachable):
                if filling.origin == origin or self._closed:
                    raise
            else:
                return Transfer(filling, origin, self._store, self._limits.patience)

    def running(self) -> int:
        """How many fetches are in flight."""
        return len(self._tasks)

    async def close(self, drain_s: float = 0.0) -> None:
        """Start no more, let those in flight end for `drain_s`, then stop them; their readers are cut."""
        self._closed = True
        if self._tasks and drain_s > 0:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for filling in self._fillings.values():
            filling.stop("the agent is stopping")  # a task that was cancelled before it ran says nothing
        self._fillings.clear()

    def _stored(self, digest: Digest, origin: Origin) -> Filling | None:
        """What a fetch published between this reader's miss and now."""
        blob = self._store.blob(digest)
        if blob is None:
            return None
        with blob:
            return Filling.of_stored(blob, origin, self._store, self._limits.patience)

    def _start(self, digest: Digest, origin: Origin, wanted: RangeRequest | None) -> Filling:
        if self._closed:
            raise OriginUnreachable("the agent is stopping")
        filling = Filling(digest, origin, self._store, self._limits.patience, wanted=wanted, pace=self._pace)
        self._fillings[digest] = filling
        elected = len(self._tasks) < self._limits.fetches and self._election.stand(digest)

        def ended(end: FetchEnded) -> None:
            self._fillings.pop(digest, None)
            if elected:
                self._election.step_down(digest)
            self._observe(end)

        task = asyncio.create_task(filling.run(store=elected, ended=ended), name=f"fetch {digest}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return filling

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug: its readers were released, and the loop is told now, not when the task is collected.
            context = {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)


def _unobserved(end: FetchEnded) -> None:
    pass
