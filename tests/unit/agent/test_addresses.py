"""For how long the addresses of registry hosts are steered."""

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from tidegate_agent.addresses import GRACE_S, SteeredAddresses
from tidegate_agent.steering import SteeringFailed
from tidegate_agent.steering.eligibility import SINKHOLE
from tidegate_dns.address import LearnedAddress
from tidegate_proxy.endpoint import Endpoint
from unit.agent.recording_steering import RecordingSteering

ADDRESS = ip_address("192.0.2.1")
STALE_MAX_S = 1000.0


@dataclass
class World:
    now: float = 0.0
    gone: set[str] = field(default_factory=set)
    learned: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steering = RecordingSteering(lambda: self.now)
        self.addresses = SteeredAddresses(
            steering=self.steering,
            ports=self.ports,
            clock=lambda: self.now,
            stale_max_s=STALE_MAX_S,
            learned=self.learned.append,
        )

    def ports(self, name: str) -> tuple[int, ...]:
        if name in self.gone:
            return ()
        return (443, 5000) if name == "registry.local" else (443,)

    def is_steered(self) -> bool:
        return Endpoint(ADDRESS, 443) in self.steering.steered()


@pytest.fixture
def world() -> World:
    return World()


def test_an_address_is_steered_for_its_time_to_live_and_a_grace(world: World) -> None:
    """N2: DESIGN 4."""
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 30)])
    world.now = 30 + GRACE_S - 1
    assert world.is_steered()

    world.now += 2
    assert not world.is_steered()


def test_every_port_that_a_registry_has_under_a_name_is_steered(world: World) -> None:
    """C24: elements hold address and port."""
    world.addresses.learn("registry.local", [LearnedAddress(ADDRESS, 30)])

    assert world.steering.steered() == {Endpoint(ADDRESS, 443), Endpoint(ADDRESS, 5000)}
    assert world.learned == [2]


def test_an_address_is_kept_while_no_resolver_answers(world: World) -> None:
    """C7: a registry outage is often a DNS outage too; clients still hold the address."""
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 0)])
    while world.now < STALE_MAX_S - GRACE_S:
        world.now += 1
        world.addresses.tend(resolver_reachable=False)
        assert world.is_steered()

    while world.now < STALE_MAX_S + GRACE_S:
        world.now += 1
        world.addresses.tend(resolver_reachable=False)
    assert not world.is_steered()


def test_an_address_runs_out_while_resolvers_answer(world: World) -> None:
    """N2: nobody is steered by what a name meant long ago."""
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 0)])
    for _ in range(int(GRACE_S) + 1):
        world.now += 1
        world.addresses.tend(resolver_reachable=True)

    assert not world.is_steered()


def test_what_no_configured_name_has_any_more_is_let_go(world: World) -> None:
    """C1: an address that another registry shares stays, a port that only the other one had goes."""
    other = ip_address("192.0.2.2")
    world.addresses.learn("registry.local", [LearnedAddress(ADDRESS, 30), LearnedAddress(other, 30)])
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 30)])

    world.gone = {"registry.local"}
    world.addresses.let_go()

    assert world.steering.steered() == {Endpoint(ADDRESS, 443)}
    assert world.addresses.steered_for_s(Endpoint(other, 443)) is None
    world.addresses.learn("ghcr.io", [LearnedAddress(other, 30)])
    assert world.steering.steered() == {Endpoint(ADDRESS, 443), Endpoint(other, 443)}


def test_sinkholes_are_steered_until_others_take_their_place(world: World) -> None:
    """N11: nobody looks them up again, so nothing but their owner keeps them."""
    world.addresses.hold([Endpoint(SINKHOLE, 443), Endpoint(SINKHOLE, 5000)])
    for _ in range(int(3 * GRACE_S)):
        world.now += 1
        world.addresses.tend(resolver_reachable=True)
        assert world.steering.steered() == {Endpoint(SINKHOLE, 443), Endpoint(SINKHOLE, 5000)}

    world.addresses.hold([Endpoint(SINKHOLE, 5000)])
    assert world.steering.steered() == {Endpoint(SINKHOLE, 5000)}
    world.steering.ends.clear()
    world.addresses.restore()
    assert world.steering.steered() == {Endpoint(SINKHOLE, 5000)}


def test_a_resolver_that_tells_the_sinkhole_teaches_nothing(world: World) -> None:
    """N11, I5: it is ours to tell; from anybody else it is an address on loopback."""
    world.addresses.learn("ghcr.io", [LearnedAddress(SINKHOLE, 30), LearnedAddress(ADDRESS, 30)])

    assert world.steering.steered() == {Endpoint(ADDRESS, 443)}


def test_an_address_that_the_kernel_refused_is_told_and_not_held(world: World) -> None:
    """I1: it goes direct."""
    world.steering.broken = True
    with pytest.raises(SteeringFailed):
        world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 30)])

    assert world.learned == []


def test_an_address_is_known_for_longer_than_it_is_steered(world: World) -> None:
    """N10: a client that keeps it is told from one that has it from elsewhere."""
    here = Endpoint(ADDRESS, 443)
    assert not world.addresses.knows(here)
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 10)])
    world.now = 5
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 10)])
    assert world.addresses.knows(here)
    assert world.addresses.steered_for_s(here) == 5

    world.now = 5 + 10 + GRACE_S
    assert world.addresses.steered_for_s(here) is None
    world.addresses.tend(resolver_reachable=True)
    assert world.addresses.knows(here)


def test_what_the_kernel_lost_is_steered_again_for_what_was_left_of_it(world: World) -> None:
    """I3: and nothing that has run out."""
    world.addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 0)])
    world.now = GRACE_S / 2
    world.steering.ends.clear()
    world.addresses.restore()
    assert world.steering.ends == {Endpoint(ADDRESS, 443): GRACE_S}

    world.now = GRACE_S
    world.steering.ends.clear()
    world.addresses.restore()
    assert world.steering.ends == {}


def test_where_loopback_has_no_ipv6_its_addresses_are_known_and_not_steered() -> None:
    """N12, I1: a redirected connection would find nobody, and wait."""
    steering = RecordingSteering(lambda: 0.0)
    addresses = SteeredAddresses(
        steering=steering,
        ports=lambda _: (443,),
        clock=lambda: 0.0,
        stale_max_s=STALE_MAX_S,
        learned=lambda _: None,
        ipv6=False,
    )
    addresses.learn("ghcr.io", [LearnedAddress(ADDRESS, 30), LearnedAddress(ip_address("2001:db8::1"), 30)])

    assert steering.steered() == {Endpoint(ADDRESS, 443)}
    assert addresses.knows(Endpoint.of("2001:db8::1", 443))
    assert addresses.steered_for_s(Endpoint.of("2001:db8::1", 443)) is None
