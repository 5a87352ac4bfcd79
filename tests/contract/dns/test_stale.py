"""Steered names while their resolver is down, refusing, failing or silent (RFC 8767)."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from dnslib import EDNS0, DNSRecord, EDNSOption

from contract.dns.scripted import (
    REGISTRY,
    Node,
    answer,
    bare,
    eventually,
    negative,
    question,
    ttls,
)
from tidegate_dns.limits import Limits

StartNode = Callable[..., Awaitable[Node]]


def silent(_: bytes) -> None:
    """A black hole."""


async def test_a_refusing_resolver_is_dark_at_once_and_steered_names_are_told_stale(warm_node: Node) -> None:
    """N13, C7: a registry outage is often a DNS outage too. Nobody waits for a port that refuses."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    started = time.monotonic()
    reply = await warm_node.ask(question(id_=77))

    assert time.monotonic() - started < 0.5
    assert reply == answer(question(id_=77), "192.0.2.7", ttl=30)
    assert not warm_node.responder.resolver_reachable
    assert warm_node.queries == {"forwarded": 2, "forwarded_stale": 1, "unreachable": 1}


async def test_a_silent_resolver_costs_a_client_at_most_two_seconds_once(warm_node: Node) -> None:
    """N13: within the defaults; from then on the resolver is known to be dark."""
    warm_node.clock.forward(3000)
    warm_node.resolver.script = silent
    started = time.monotonic()
    assert ttls(await warm_node.ask(question())) == [30]
    waited_s = time.monotonic() - started
    warm_node.clock.forward(5)
    started = time.monotonic()
    assert ttls(await warm_node.ask(question())) == [30]

    assert 1.4 < waited_s < 2.0
    assert time.monotonic() - started < 0.2
    assert not warm_node.responder.resolver_reachable


async def test_nodata_and_nxdomain_are_told_stale_too(start_node: StartNode) -> None:
    """N13: a Go client whose AAAA question is not answered stalls, though its A was."""
    node = await start_node()
    for rrtype, rcode in (("AAAA", "NOERROR"), ("TXT", "NXDOMAIN")):
        node.resolver.script = lambda query, rcode=rcode: negative(query, rcode)
        await node.ask(question(rrtype=rrtype))
    node.clock.forward(3000)
    await node.resolver.stop()

    for rrtype, rcode in (("AAAA", 0), ("TXT", 3)):
        reply = DNSRecord.parse(await node.ask(question(rrtype=rrtype)))
        assert (reply.header.rcode, reply.rr, [soa.ttl for soa in reply.auth]) == (rcode, [], [30])


async def test_a_ttl_of_zero_is_kept_for_stale(start_node: StartNode) -> None:
    """N13: not fresh is not forgotten."""
    node = await start_node()
    node.resolver.script = lambda query: answer(query, "192.0.2.7", ttl=0)
    await node.ask(question())
    await node.resolver.stop()

    assert await node.ask(question()) == answer(question(), "192.0.2.7", ttl=30)


async def test_a_stale_answer_is_learned_again_for_longer_than_its_thirty_seconds(warm_node: Node) -> None:
    """C7: or the client would connect to an address that is steered no more."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    warm_node.learned.clear()
    for _ in range(3):
        warm_node.clock.forward(2)
        await warm_node.ask(question())

    assert len(warm_node.learned) == 3
    for name, (address,) in warm_node.learned:
        assert (name, str(address.address)) == (REGISTRY, "192.0.2.7")
        assert address.ttl_s > 30


async def test_the_next_client_may_ask_in_other_bytes(warm_node: Node) -> None:
    """C7: what glibc asked is told to Go and dig too: EDNS, cookies and case differ, the question not."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    record = DNSRecord.parse(question("ReGistry.Test", id_=5))
    record.add_ar(EDNS0(udp_len=1232))
    reply = DNSRecord.parse(await warm_node.ask(bytes(record.pack())))

    assert (reply.header.id, reply.header.rcode, str(reply.q.qname)) == (5, 0, "ReGistry.Test.")
    assert [(str(r.rdata), r.ttl) for r in reply.rr] == [("192.0.2.7", 30)]
    assert warm_node.learned[-1][1][0].ttl_s > 30


async def test_a_stale_answer_too_large_for_a_datagram_is_told_over_tcp(node: Node) -> None:
    """C7, N13: what only TCP has heard makes the client ask there, as the resolver would have."""
    many = [f"192.0.2.{number}" for number in range(60)]
    node.resolver.script = lambda query: answer(query, *many)
    await node.ask_tcp(question())
    node.clock.forward(3000)
    await node.resolver.stop()
    told = DNSRecord.parse(await node.ask(question(id_=5)))

    assert (told.header.id, told.header.tc, told.rr, str(told.q.qname)) == (5, 1, [], f"{REGISTRY}.")
    assert await node.ask_tcp(question(id_=6)) == answer(question(id_=6), *many, ttl=30)


@pytest.mark.parametrize("size", [10, 60])
async def test_what_the_agent_looked_up_over_tcp_is_no_datagram(start_node: StartNode, size: int) -> None:
    """N13, RFC 1035 section 4.2.1: a client's datagram has room for what its query says, and no more."""
    node = await start_node()
    asked = question(id_=1)
    many = [f"192.0.2.{number}" for number in range(size)]
    node.responder.remember(node.resolver.address, asked, answer(asked, *many))

    over_udp = await node.ask(question(id_=2))
    assert len(over_udp) <= 512
    assert node.queries == ({"hit": 1} if size == 10 else {"forwarded": 1})


async def test_a_client_with_a_cookie_is_told_stale_with_it(warm_node: Node) -> None:
    """C7, RFC 7873 section 5.3: without it the client would drop the answer."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    record = DNSRecord.parse(question())
    record.add_ar(EDNS0(udp_len=1232, opts=[EDNSOption(10, bytes(16))]))
    (opt,) = DNSRecord.parse(await warm_node.ask(bytes(record.pack()))).ar

    assert [(option.code, option.data) for option in opt.rdata] == [(10, bytes(16))]


async def test_a_validating_client_is_not_told_what_was_said_without_signatures(warm_node: Node) -> None:
    """N13: an unsigned answer would be bogus to it; the failure it gets is the true state."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    record = DNSRecord.parse(question())
    record.add_ar(EDNS0(flags="do", udp_len=1232))

    assert DNSRecord.parse(await warm_node.ask(bytes(record.pack()))).header.rcode == 2


@pytest.mark.parametrize("rcode", [2, 5])
async def test_a_failing_resolver_makes_a_steered_name_stale(warm_node: Node, rcode: int) -> None:
    """C7, RFC 8767 section 4: a forwarder whose own upstream is gone says SERVFAIL or REFUSED."""
    warm_node.clock.forward(3000)
    warm_node.resolver.script = lambda query: bare(query, rcode)

    assert await warm_node.ask(question()) == answer(question(), "192.0.2.7", ttl=30)
    assert warm_node.responder.resolver_reachable


async def test_stale_answers_end_with_stale_max(warm_node: Node) -> None:
    """I8: an address of long ago is no help."""
    warm_node.clock.forward(300 + 3600)
    await warm_node.resolver.stop()

    assert DNSRecord.parse(await warm_node.ask(question())).header.rcode == 2


async def test_a_resolver_that_is_back_is_noticed_without_a_client(warm_node: Node) -> None:
    """C7: a dark resolver is asked again in the background, and its first answer ends the darkness."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    await warm_node.ask(question())
    assert not warm_node.responder.resolver_reachable
    warm_node.resolver.script = lambda query: answer(query, "192.0.2.99")
    await warm_node.resolver.start()
    await eventually(lambda: warm_node.responder.resolver_reachable)

    assert await warm_node.ask(question()) == answer(question(), "192.0.2.99")
    assert "192.0.2.99" in warm_node.learned_addresses()


async def test_the_answer_to_another_name_ends_the_darkness(warm_node: Node) -> None:
    """C7: `resolver_reachable` turns true with the first answer of any kind."""
    warm_node.clock.forward(3000)
    await warm_node.resolver.stop()
    await warm_node.ask(question())
    await warm_node.resolver.start()
    await warm_node.ask(question("other.test"))

    assert warm_node.responder.resolver_reachable


async def test_one_slow_name_does_not_darken_a_resolver_that_answers_others(start_node: StartNode) -> None:
    """C7: cold recursion takes its time."""
    node = await start_node(limits=Limits(stale_after_s=0.3))
    node.resolver.script = lambda query: answer(query, "192.0.2.7") if b"\x05other" in query else None
    with node.client() as client:
        client.send(question())
        await eventually(lambda: len(node.resolver.asked) == 1)
        node.clock.forward(0.1)
        await node.ask(question("other.test"))
        (port,) = (p for p in node.responder._ports.values() if p.forwarder is not None)
        (flight,) = port.forwarder._flights if port.forwarder else ()
        await eventually(lambda: flight.timers[0].when() < asyncio.get_running_loop().time())

    assert node.responder.resolver_reachable


async def test_another_name_at_a_refusing_resolver_fails_at_once(node: Node) -> None:
    """N13, I1: SERVFAIL turns a stub to its next server as the refusal would; waiting would not."""
    await node.resolver.stop()
    started = time.monotonic()
    query = question("other.test")

    assert await node.ask(query) == bare(query, 2)
    assert time.monotonic() - started < 0.5


async def test_another_name_at_a_silent_resolver_is_left_to_the_clients_patience(node: Node) -> None:
    """N13: a failure of our own would end a look-up that the client's retry may still win."""
    node.resolver.script = silent
    with node.client() as client:
        client.send(question("other.test"))
        with pytest.raises(TimeoutError):
            await client.receive(within_s=2.3)


async def test_a_steered_name_never_heard_of_is_left_to_the_clients_patience(start_node: StartNode) -> None:
    """N13: there is nothing stale to tell."""
    node = await start_node(limits=Limits(stale_after_s=0.05))
    node.resolver.script = silent
    with node.client() as client:
        client.send(question())
        await eventually(lambda: not node.responder.resolver_reachable)

        assert client.has_nothing()


async def test_what_the_agent_looked_up_itself_is_told_stale(start_node: StartNode) -> None:
    """C7: names resolved at start serve the first client of a dark day."""
    node = await start_node()
    asked = question(id_=1)
    node.responder.remember(node.resolver.address, asked, answer(asked, "192.0.2.7"))
    other = question("other.test")
    node.responder.remember(node.resolver.address, other, answer(other, "192.0.2.8"))
    node.clock.forward(3000)
    await node.resolver.stop()

    assert await node.ask(question(id_=2)) == answer(question(id_=2), "192.0.2.7", ttl=30)
    assert await node.ask(other) == bare(other, 2)
    assert len(node.responder._resolvers[node.resolver.address].udp) == 1
