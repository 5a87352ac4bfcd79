"""What was served, told to those who count and log it in batches: most requests are handled in microseconds.

A `Served` is made once for all requests that are alike in it, and each request is a `Moment` of it. Nothing
is told later than `TOLD_AFTER_S` after it happened, and whoever wants to know now has it told first.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate_proxy.registry.answer import Cache, Kind
from tidegate_proxy.site import Site

TOLD_AFTER_S = 0.1
_TOLD_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A request as the log and the metrics want it; `cause` names what went wrong, if anything did.

    Compared by identity, which makes it a cheap key for what is alike in a batch.
    """

    site: Site
    method: str
    path: str
    status: int
    cache: Cache
    kind: Kind
    sent_bytes: int
    received_bytes: int
    cause: BaseException | None


Moment = tuple[Served, float, float]
"""One request: what was served, when it ended in seconds since the epoch, and how many seconds it took."""

Observe = Callable[[Sequence[Moment]], None]
"""Takes requests in the order in which they ended."""


class Tally:
    """Keeps moments for a moment. Used on the event loop."""

    def __init__(self, observers: Sequence[Observe]) -> None:
        """More observers may be added to the list that is given, before the first is told."""
        self._observers = observers
        self._moments: list[Moment] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, served: Served, seconds: float) -> None:
        """One request has ended, after so many seconds."""
        self._moments.append((served, time.time(), seconds))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOLD_AFTER_S, self.tell)
        if self._closed or len(self._moments) >= _TOLD_AT_ONCE:
            self.tell()

    def tell(self) -> None:
        """Tell now; whatever is wrong with an observer is no reason to fail a request, or the others (I1)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moments, self._moments = self._moments, []
        if not moments:
            return
        for observe in self._observers:
            try:
                observe(moments)
            except Exception as error:  # noqa: BLE001 - see above
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "requests could not be counted or logged", "exception": error}
                )

    def close(self) -> None:
        """Tell, and from here on at once: nobody may be there when the time comes."""
        self._closed = True
        self.tell()
