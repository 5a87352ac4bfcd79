"""A steering back end in memory: the elements it would hold, and whether its lease is held."""

from collections.abc import Callable, Iterable

from tidegate_agent.steering import NoSteering, SteeringFailed
from tidegate_proxy.endpoint import Endpoint


class RecordingSteering(NoSteering):
    """Keeps elements with their ends by a clock; refuses everything while `broken`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.ends: dict[Endpoint, float] = {}
        self.active = False
        self.broken = False

    def activate(self) -> None:
        self._check()
        self.active = True

    def suspend(self) -> None:
        self.active = False
        self._check()

    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None:
        self._check()
        for endpoint, timeout_s in learned:
            self.ends[endpoint] = max(self.ends.get(endpoint, 0.0), self._clock() + timeout_s)

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        self._check()
        for endpoint in endpoints:
            self.ends.pop(endpoint, None)

    def steered(self) -> set[Endpoint]:
        return {endpoint for endpoint, end in self.ends.items() if end > self._clock()}

    def _check(self) -> None:
        if self.broken:
            raise SteeringFailed("the kernel refused")
