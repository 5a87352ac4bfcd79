"""The addresses of registry hosts that are steered, and for how long (DESIGN, section 4).

An address is steered for its record's time to live and a grace. While no resolver answers, nobody can
learn it again although clients still hold it: then it is kept, up to `stale_max` after it was last seen.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from tidegate_agent.steering.backend import Steering
from tidegate_agent.steering.eligibility import SINKHOLE
from tidegate_dns.address import LearnedAddress
from tidegate_proxy.endpoint import Endpoint

GRACE_S = 60.0
_MAX_ENDPOINTS = 16384
_MAX_NAMES = 64  # of one address; hosts of content delivery networks have some


class SteeredAddresses:
    """Hands what was learned to the steering back end, and remembers it for as long as that is needed."""

    def __init__(
        self,
        *,
        steering: Steering,
        ports: Callable[[str], Iterable[int]],
        clock: Callable[[], float],
        stale_max_s: float,
        learned: Callable[[int], None],
        ipv6: bool = True,
    ) -> None:
        """`ipv6`: connections over it can be redirected, because this host's loopback has it."""
        self._steering = steering
        self._ports = ports
        self._clock = clock
        self._stale_max_s = stale_max_s
        self._learned = learned
        self._ipv6 = ipv6
        self._last_seen: dict[Endpoint, float] = {}
        self._held_until: dict[Endpoint, float] = {}
        self._since: dict[Endpoint, float] = {}
        self._ever: OrderedDict[Endpoint, None] = OrderedDict()
        self._names: dict[Endpoint, set[str]] = {}
        self._sinkholes: tuple[Endpoint, ...] = ()
        self._sinkholes_until = 0.0

    def hold(self, sinkholes: Iterable[Endpoint]) -> None:
        """Steer these, of our own making, in the place of those before; raises SteeringFailed."""
        held = tuple(sinkholes)
        self._steering.remove(set(self._sinkholes) - set(held))
        self._sinkholes = held
        self._hold()

    def _hold(self) -> None:
        self._steering.add([(endpoint, GRACE_S) for endpoint in self._sinkholes])
        self._sinkholes_until = self._clock() + GRACE_S

    def learn(self, name: str, addresses: Sequence[LearnedAddress]) -> None:
        """Steer the addresses of a host; returns when the kernel has them. Raises SteeringFailed."""
        now = self._clock()
        named = [
            (Endpoint(found.address, port), found.ttl_s + GRACE_S)
            for found in addresses
            if found.address != SINKHOLE
            for port in self._ports(name)
        ]
        learned = [each for each in named if self._ipv6 or each[0].address.version == 4]
        self._steering.add(learned)
        self._learned(len(learned))
        for endpoint, hold_s in learned:
            self._last_seen[endpoint] = now
            self._held_until[endpoint] = max(self._held_until.get(endpoint, 0.0), now + hold_s)
            self._since.setdefault(endpoint, now)
            names = self._names.setdefault(endpoint, set())
            if len(names) < _MAX_NAMES:
                names.add(name)
        for endpoint, _ in named:
            self._ever[endpoint] = None
            self._ever.move_to_end(endpoint)
        while len(self._last_seen) > _MAX_ENDPOINTS:
            self._forget(next(iter(self._last_seen)))
        while len(self._ever) > _MAX_ENDPOINTS:
            self._ever.popitem(last=False)

    def let_go(self) -> None:
        """Steer no longer what no name of those configured has; raises SteeringFailed.

        An address that had too many names to know them all runs out by itself.
        """
        unclaimed = [
            endpoint
            for endpoint, names in self._names.items()
            if len(names) < _MAX_NAMES and not any(endpoint.port in self._ports(name) for name in names)
        ]
        for endpoint in unclaimed:
            self._forget(endpoint)
        self._steering.remove(unclaimed)

    def knows(self, endpoint: Endpoint) -> bool:
        """Whether an answer has ever named this address for a registry."""
        return endpoint in self._ever

    def steered_for_s(self, endpoint: Endpoint) -> float | None:
        """For how long it has been steered, without a gap; None where it is not now."""
        now = self._clock()
        return now - self._since[endpoint] if self._held_until.get(endpoint, 0.0) > now else None

    def restore(self) -> None:
        """Steer again what should be, after the kernel lost it; raises SteeringFailed."""
        now = self._clock()
        self._steering.add([(each, until - now) for each, until in self._held_until.items() if until > now])
        self._hold()

    def tend(self, *, resolver_reachable: bool) -> None:
        """Forget what has run out; while no resolver answers, keep instead what would run out soon."""
        now = self._clock()
        if self._sinkholes and self._sinkholes_until - now < GRACE_S / 2:
            self._hold()
        for endpoint, held_until in list(self._held_until.items()):
            if not resolver_reachable and now - self._last_seen[endpoint] < self._stale_max_s:
                if held_until - now < GRACE_S / 2:
                    self._steering.add([(endpoint, GRACE_S)])
                    self._held_until[endpoint] = now + GRACE_S
            elif held_until <= now:
                self._forget(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        del self._held_until[endpoint], self._last_seen[endpoint]
        del self._since[endpoint], self._names[endpoint]
