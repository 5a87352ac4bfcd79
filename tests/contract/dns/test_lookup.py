"""The agent's own look-ups against scripted resolvers."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from dnslib import DNSRecord

from contract.dns.scripted import HandClock, ScriptedResolver, answer, bare, eventually, negative
from tidegate_dns.lookup import Lookup, NameNotFound, Patience, ResolverUnreachable


def dual(query: bytes) -> bytes:
    """192.0.2.7 and 2001:db8::7, each to who asks for it."""
    is_a = DNSRecord.parse(query).q.qtype == 1
    return answer(query, "192.0.2.7" if is_a else "2001:db8::7")


def only_a(query: bytes) -> bytes:
    return answer(query, "192.0.2.8") if DNSRecord.parse(query).q.qtype == 1 else negative(query)


class Desk:
    """Two resolvers on one port, and a look-up that knows both."""

    def __init__(self, first: ScriptedResolver, second: ScriptedResolver) -> None:
        self.first, self.second = first, second
        self.clock = HandClock()
        self.exempted: list[object] = []
        self.lookup = self.with_patience(Patience())

    def with_patience(self, patience: Patience) -> Lookup:
        return Lookup(
            [self.first.address, self.second.address],
            exempt=self.exempted.append,
            clock=self.clock,
            patience=patience,
            resolver_port=self.first.port,
        )

    async def addresses(self, name: str = "registry.test") -> list[str]:
        return [str(learned.address) for learned in await self.lookup.addresses(name)]


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    first = await ScriptedResolver(dual, "127.0.0.2").start()
    second = await ScriptedResolver(only_a, "127.0.0.3", first.port).start()
    yield Desk(first, second)
    await first.stop()
    await second.stop()


async def test_both_families_are_asked_for_and_told(desk: Desk) -> None:
    """N12."""
    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]
    assert desk.second.asked == []


async def test_every_socket_is_exempted(desk: Desk) -> None:
    """I5: our own look-ups are never steered."""
    desk.first.script = lambda query: _truncated(query) if len(desk.first.asked) <= 2 else dual(query)
    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]

    assert len(desk.exempted) == 4


@pytest.mark.parametrize("rcode", [1, 2, 4, 5])
async def test_a_resolver_that_fails_gives_way_to_the_next_at_once(desk: Desk, rcode: int) -> None:
    """N13: failover is for our own look-ups only."""
    desk.first.script = lambda query: bare(query, rcode)
    started = time.monotonic()

    assert await desk.addresses() == ["192.0.2.8"]
    assert time.monotonic() - started < 0.5


async def test_a_resolver_that_refuses_gives_way_to_the_next_at_once(desk: Desk) -> None:
    """N13."""
    await desk.first.stop()
    started = time.monotonic()

    assert await desk.addresses() == ["192.0.2.8"]
    assert time.monotonic() - started < 0.5


async def test_a_silent_resolver_is_overtaken_by_the_next(desk: Desk) -> None:
    """N13."""
    desk.first.script = lambda _: None
    started = time.monotonic()

    assert await desk.addresses() == ["192.0.2.8"]
    assert time.monotonic() - started < 1.2


async def test_a_resolver_that_kept_silent_is_asked_last_for_a_while(desk: Desk) -> None:
    """N13: a dead first server costs its time once, not once for every name."""
    desk.first.script = lambda _: None
    assert await desk.addresses() == ["192.0.2.8"]
    started, asked_before = time.monotonic(), len(desk.first.asked)

    assert await desk.addresses("other.test") == ["192.0.2.8"]
    assert time.monotonic() - started < 0.5
    assert len(desk.first.asked) == asked_before
    desk.first.script = dual
    desk.clock.forward(Patience().silent_s)
    assert await desk.addresses("third.test") == ["192.0.2.7", "2001:db8::7"]


async def test_a_resolver_that_refused_is_asked_last_for_a_while(desk: Desk) -> None:
    """N13: a host refuses no more often than once a second (ICMP), then it is as if it were silent."""
    await desk.first.stop()
    assert await desk.addresses() == ["192.0.2.8"]
    await desk.first.start()

    assert await desk.addresses("other.test") == ["192.0.2.8"]
    assert desk.first.asked == []
    desk.clock.forward(Patience().silent_s)
    assert await desk.addresses("third.test") == ["192.0.2.7", "2001:db8::7"]


async def test_the_first_servers_word_counts_when_the_second_knows_no_such_name(desk: Desk) -> None:
    """N13, split horizon: a slow server that knows a name of the house beats a quick one that does not."""

    def slow_once(query: bytes) -> bytes | None:
        # Two queries, one of each family, and then the same again.
        return dual(query) if len(desk.first.asked) > 2 else None

    desk.first.script = slow_once
    desk.second.script = lambda query: negative(query, "NXDOMAIN")

    assert await desk.addresses("registry.house.test") == ["192.0.2.7", "2001:db8::7"]
    assert desk.second.asked


async def test_a_name_that_only_the_living_server_denies_is_not_found(desk: Desk) -> None:
    """N13: when the time is up, the one answer there is counts."""
    desk.first.script = lambda _: None
    desk.second.script = lambda query: negative(query, "NXDOMAIN")

    with pytest.raises(NameNotFound):
        await desk.addresses("no.test")
    assert desk.lookup.resolver_reachable


async def test_a_host_that_uses_tcp_alone_is_followed_in_that(desk: Desk) -> None:
    """N13, `options use-vc`: where UDP is filtered, the agent's own look-ups go over TCP, too."""
    desk.lookup.set_resolvers([desk.first.address, desk.second.address], over_tcp=True)

    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]
    assert desk.first.asked_from == []
    assert desk.first.tcp_connections == 2


async def test_dark_resolvers_cost_two_seconds_once(desk: Desk) -> None:
    """C7: an offline pull is not a slow pull; what was looked up before is not used in the dark."""
    assert await desk.addresses("cached.test")
    desk.first.script = desk.second.script = lambda _: None
    started = time.monotonic()
    with pytest.raises(ResolverUnreachable):
        await desk.addresses()
    first_s = time.monotonic() - started
    for name in ("registry.test", "cached.test", "third.test"):
        with pytest.raises(ResolverUnreachable):
            await desk.addresses(name)

    assert 1.5 < first_s < 2.5
    assert time.monotonic() - started - first_s < 0.2
    assert not desk.lookup.resolver_reachable
    desk.first.script = dual
    desk.clock.forward(5)
    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]


async def test_other_resolvers_are_not_held_dark_for_what_the_old_ones_did(desk: Desk) -> None:
    """N13: a laptop that changes networks."""
    await desk.first.stop()
    await desk.second.stop()
    with pytest.raises(ResolverUnreachable):
        await desk.addresses()
    third = await ScriptedResolver(dual, "127.0.0.5", desk.first.port).start()
    desk.lookup.set_resolvers([third.address])

    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]
    await third.stop()


async def test_a_name_that_does_not_exist_is_not_an_unreachable_resolver(desk: Desk) -> None:
    """C7: one is final, the other is a reason to serve stale."""
    for script in (negative, lambda query: negative(query, "NXDOMAIN")):
        desk.first.script = script
        with pytest.raises(NameNotFound):
            await desk.addresses("no.test")

    assert desk.second.asked == []


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64 + ".test", "y." * 130, "ü" * 70, "bad name\0"])
async def test_what_is_no_name_is_not_found(desk: Desk, name: str) -> None:
    """I8: nothing that a redirect may carry makes us raise anything else."""
    desk.first.script = negative
    with pytest.raises(NameNotFound):
        await desk.addresses(name)


async def test_an_address_is_its_own_answer(desk: Desk) -> None:
    """C8: a redirect may lead to an address."""
    assert await desk.addresses("2001:db8::1") == ["2001:db8::1"]
    assert desk.first.asked == []


async def test_an_answer_is_used_for_its_ttl(desk: Desk) -> None:
    """N13."""
    desk.first.script = lambda query: answer(query, "192.0.2.7", ttl=20)
    await desk.addresses("Registry.TEST.")
    desk.clock.forward(19)
    await desk.addresses()
    assert len(desk.first.asked) == 2

    desk.clock.forward(1)
    await desk.addresses()
    assert len(desk.first.asked) == 4


async def test_a_truncated_answer_is_asked_for_again_over_tcp(desk: Desk) -> None:
    """N13, RFC 7766 section 5."""
    desk.first.script = lambda query: _truncated(query) if desk.first.tcp_connections == 0 else dual(query)

    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]
    assert desk.first.tcp_connections == 2


async def test_look_ups_at_the_same_time_are_one_and_outlive_an_impatient_caller(desk: Desk) -> None:
    """N13."""
    held: list[bytes] = []
    desk.first.script = held.append
    callers = [asyncio.ensure_future(desk.addresses()) for _ in range(5)]
    await eventually(lambda: len(held) == 2)
    callers[0].cancel()
    desk.second.script = dual
    told = await asyncio.gather(*callers, return_exceptions=True)

    assert isinstance(told[0], asyncio.CancelledError)
    assert told[1:] == [["192.0.2.7", "2001:db8::7"]] * 4
    assert len(held) == 2


async def test_a_family_that_lags_behind_is_not_waited_for(desk: Desk) -> None:
    """N12: some resolvers drop AAAA questions."""
    desk.first.script = lambda query: dual(query) if DNSRecord.parse(query).q.qtype == 1 else None
    desk.second.script = lambda _: None
    started = time.monotonic()

    assert await desk.addresses() == ["192.0.2.7"]
    assert time.monotonic() - started < 0.6


async def test_forged_answers_are_not_taken(desk: Desk) -> None:
    """N13, RFC 5452 section 9.1."""
    desk.first.script = lambda query: [
        bytes([query[0] ^ 1]) + answer(query, "203.0.113.66", "2001:db8::66")[1:],
        dual(query),
    ]

    assert await desk.addresses() == ["192.0.2.7", "2001:db8::7"]


async def test_what_was_answered_is_handed_on(desk: Desk) -> None:
    """C7: the responder keeps it for a dark day."""
    handed: list[tuple[str, bytes, bytes]] = []
    lookup = Lookup(
        [desk.first.address],
        exempt=desk.exempted.append,
        clock=desk.clock,
        answered=lambda resolver, query, told: handed.append((str(resolver), query, told)),
        resolver_port=desk.first.port,
    )
    await lookup.addresses("registry.test")

    assert sorted(handed) == sorted(("127.0.0.2", query, dual(query)) for query in desk.first.asked)


async def test_without_resolvers_nothing_is_reachable() -> None:
    """C7."""
    lookup = Lookup([], exempt=lambda _: None, clock=HandClock())

    with pytest.raises(ResolverUnreachable, match="none configured"):
        await lookup.addresses("registry.test")


def _truncated(query: bytes) -> bytes:
    reply = bytearray(negative(query))
    reply[2] |= 0x02
    return bytes(reply)
