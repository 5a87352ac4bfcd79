"""Which endpoints a back end steers, and until when, as it told the kernel (DESIGN 4, I8).

The kernel ends each by itself. This record is why nothing is told twice, no time is ever shortened, and the
kernel's sets and maps, which have room for MAX_ENDPOINTS, do not fill up with what has timed out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.ruleset import MAX_ENDPOINTS
from tidegate_proxy.endpoint import Endpoint, IPAddress

_LINGER_S = 5.0  # the kernel's clock and ours may disagree about what has timed out
_PRUNE_FROM = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the kernel has to be told: seconds for each endpoint, and what it may forget."""

    now: float
    fresh: Mapping[Endpoint, float]
    renewed: Mapping[Endpoint, float]
    """These are known already, or were until a moment ago."""
    timed_out: Collection[Endpoint]

    def __bool__(self) -> bool:
        return bool(self.fresh or self.renewed)


class Learned:
    """Endpoints and when they time out, by `clock` in seconds."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expiry: dict[Endpoint, float] = {}
        self._prune_at = _PRUNE_FROM

    def changes(
        self, learned: Iterable[tuple[Endpoint, float]], may_be_steered: Callable[[IPAddress], bool]
    ) -> Changes:
        """What steering each of these for so many seconds takes; raises SteeringFailed when they do not fit.

        Whether an address may be steered at all is asked when it is new.
        """
        now = self._clock()
        fresh: dict[Endpoint, float] = {}
        renewed: dict[Endpoint, float] = {}
        for endpoint, timeout_s in learned:
            expiry = self._expiry.get(endpoint)
            if expiry is None:
                if endpoint in fresh or may_be_steered(endpoint.address):
                    fresh[endpoint] = max(timeout_s, fresh.get(endpoint, 0.0))
            # Never shortened, and not renewed for the sake of a hundredth of it: answers repeat often.
            elif now + timeout_s - expiry > min(1.0, timeout_s / 100):
                renewed[endpoint] = max(timeout_s, renewed.get(endpoint, 0.0))
        timed_out: Collection[Endpoint] = ()
        if len(self._expiry) + len(fresh) > self._prune_at:
            timed_out = self._timed_out(now, len(fresh)) - renewed.keys()
        return Changes(now=now, fresh=fresh, renewed=renewed, timed_out=timed_out)

    def took(self, changes: Changes) -> None:
        """The kernel was told."""
        self.forget(changes.timed_out)
        for told in (changes.fresh, changes.renewed):
            for endpoint, timeout_s in told.items():
                self._expiry[endpoint] = changes.now + timeout_s

    def known(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Those of these that the kernel was told of."""
        return [endpoint for endpoint in endpoints if endpoint in self._expiry]

    def all(self) -> list[Endpoint]:
        """All that the kernel was told of, timed out or not."""
        return list(self._expiry)

    def forget(self, endpoints: Iterable[Endpoint]) -> None:
        """The kernel has these no more."""
        for endpoint in endpoints:
            self._expiry.pop(endpoint, None)

    def clear(self) -> None:
        """The kernel has none."""
        self._expiry.clear()

    def count(self) -> int:
        """How many are steered now."""
        now = self._clock()
        return sum(expiry > now for expiry in self._expiry.values())

    def _timed_out(self, now: float, wanted: int) -> set[Endpoint]:
        """What makes room for so many more; raises SteeringFailed when that is not enough."""
        timed_out = {endpoint for endpoint, expiry in self._expiry.items() if expiry + _LINGER_S <= now}
        left = len(self._expiry) - len(timed_out)
        if left + wanted > MAX_ENDPOINTS:
            raise SteeringFailed(f"{left} endpoints are steered already; {wanted} more do not fit")
        self._prune_at = min(MAX_ENDPOINTS, max(_PRUNE_FROM, 2 * (left + wanted)))
        return timed_out
