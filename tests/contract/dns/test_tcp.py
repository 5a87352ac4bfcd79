"""DNS over TCP through the responder (RFC 7766)."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest
from dnslib import QTYPE, RR, TXT, DNSRecord

from contract.dns.scripted import (
    DEADLINE_S,
    REGISTRY,
    Node,
    answer,
    bare,
    eventually,
    framed,
    negative,
    question,
    read_framed,
)
from tidegate_dns.limits import Limits

StartNode = Callable[..., Awaitable[Node]]


def big(query: bytes, size: int) -> bytes:
    """An answer of `size` octets; the last few are behind its last record, where some servers pad."""
    reply = DNSRecord.parse(query).reply()
    for _ in range((size - 100) // 230):
        reply.add_answer(RR(str(reply.q.qname), QTYPE.TXT, rdata=TXT("x" * 200), ttl=60))
    packed = bytes(reply.pack())
    return packed + bytes(size - len(packed))


async def test_messages_are_relayed_byte_for_byte(node: Node) -> None:
    """N13: ids included; a relay needs none of its own."""
    query = question("other.test", id_=0xBEEF)

    assert await node.ask_tcp(query) == answer(query, "192.0.2.7")
    assert node.resolver.asked == [query]


@pytest.mark.parametrize("rcode", range(16))
async def test_every_rcode_comes_back_byte_for_byte(node: Node, rcode: int) -> None:
    """N13."""
    node.resolver.script = lambda query: bare(query, rcode)

    assert await node.ask_tcp(question()) == bare(question(), rcode)


@pytest.mark.parametrize("size", [4096, 65535])
@pytest.mark.parametrize("name", ["other.test", REGISTRY])
async def test_large_answers_come_back_whole(node: Node, size: int, name: str) -> None:
    """N13: TCP is where answers go that no datagram holds."""
    reply = big(question(name, "TXT"), size)
    node.resolver.script = lambda _: reply

    assert await node.ask_tcp(question(name, "TXT")) == reply
    assert len(reply) == size


async def test_steered_names_are_learned_before_the_reply_leaves(node: Node) -> None:
    """N2."""
    node.resolver.script = lambda query: answer(query, "192.0.2.7", "2001:db8::7", chain=["cdn.test"])
    reader, writer = await node.dial()
    seen: list[int] = []
    learn = node._learn

    def learn_and_look(name: str, addresses: object) -> None:
        seen.append(len(reader._buffer))  # type: ignore[attr-defined]  # what has arrived so far
        learn(name, addresses)  # type: ignore[arg-type]  # as it was called

    node.responder._learn = learn_and_look
    writer.write(framed(question()))
    reply = await read_framed(reader)
    writer.close()

    assert reply == answer(question(), "192.0.2.7", "2001:db8::7", chain=["cdn.test"])
    assert seen == [0]
    assert node.learned_addresses() == {"192.0.2.7", "2001:db8::7"}


async def test_several_queries_share_a_connection_and_answers_come_as_the_resolver_sends_them(
    node: Node,
) -> None:
    """N13, RFC 7766 sections 6.2.1 and 7: pipelined, and out of order if the resolver likes."""
    held: list[bytes] = []

    def last_first(query: bytes) -> list[bytes]:
        held.insert(0, answer(query, "192.0.2.7"))
        return held if len(held) == 3 else []

    node.resolver.script = last_first
    queries = [question(REGISTRY, id_=1), question("other.test", id_=2), question(REGISTRY, "AAAA", id_=3)]
    reader, writer = await node.dial()
    writer.write(b"".join(map(framed, queries)))
    replies = [await read_framed(reader) for _ in queries]
    writer.close()

    assert replies == [answer(query, "192.0.2.7") for query in reversed(queries)]
    assert node.resolver.tcp_connections == 1


async def test_an_answer_of_several_messages_passes(node: Node) -> None:
    """N13: zone transfers (RFC 5936) have more than one."""
    query = question("zone.test", "AXFR")
    node.resolver.script = lambda query: [answer(query, f"192.0.2.{n}") for n in range(5)]
    reader, writer = await node.dial()
    writer.write(framed(query))
    replies = [await read_framed(reader) for _ in range(5)]
    writer.close()

    assert replies == [answer(query, f"192.0.2.{n}") for n in range(5)]


async def test_a_query_in_single_octets_is_put_together(node: Node) -> None:
    """N13."""
    reader, writer = await node.dial()
    for octet in framed(question("other.test")):
        writer.write(bytes([octet]))
        await writer.drain()
        await asyncio.sleep(0)

    assert await read_framed(reader) == answer(question("other.test"), "192.0.2.7")
    writer.close()


async def test_a_half_closed_client_still_gets_its_answer(node: Node) -> None:
    """N13: some tools send and shut down."""
    reader, writer = await node.dial()
    writer.write(framed(question("other.test")))
    writer.write_eof()

    assert await read_framed(reader) == answer(question("other.test"), "192.0.2.7")
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()


async def test_a_resolver_that_closes_closes_the_clients_connection_too(node: Node) -> None:
    """N13, C7: after what it said; a steered name that it left unanswered is told stale."""
    await node.ask_tcp(question())
    node.clock.forward(3000)
    reader, writer = await node.dial()
    writer.write(framed(question("other.test")))
    assert await read_framed(reader) == answer(question("other.test"), "192.0.2.7")
    node.resolver.script = lambda _: None
    writer.write(framed(question()))
    await eventually(lambda: len(node.resolver.asked) == 3)
    node.resolver.hang_up()

    assert await read_framed(reader) == answer(question(), "192.0.2.7", ttl=30)
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()


async def test_a_steered_name_is_told_stale_when_the_resolver_refuses(node: Node) -> None:
    """C7: from what TCP heard, or else UDP."""
    await node.ask_tcp(question())
    node.resolver.script = negative
    await node.ask(question(rrtype="AAAA"))
    node.clock.forward(3000)
    await node.resolver.stop()

    assert await node.ask_tcp(question(id_=8)) == answer(question(id_=8), "192.0.2.7", ttl=30)
    told = DNSRecord.parse(await node.ask_tcp(question(rrtype="AAAA")))
    assert (told.header.rcode, told.rr, [soa.ttl for soa in told.auth]) == (0, [], [30])


async def test_a_steered_name_is_told_stale_when_the_resolver_is_silent(start_node: StartNode) -> None:
    """C7."""
    node = await start_node(limits=Limits(stale_after_s=0.1))
    await node.ask_tcp(question())
    node.clock.forward(3000)
    node.resolver.script = lambda _: None

    assert await node.ask_tcp(question()) == answer(question(), "192.0.2.7", ttl=30)


async def test_every_query_over_tcp_is_counted_once_as_it_arrives(start_node: StartNode) -> None:
    """DESIGN 9: one that is told stale when it waited too long, or could not even be asked, included."""
    node = await start_node(limits=Limits(stale_after_s=0.1))
    for _ in range(2):
        await node.ask_tcp(question())
    node.clock.forward(3000)
    for script in (lambda _: None, lambda query: bare(query, 2)):
        node.resolver.script = script
        await node.ask_tcp(question())
    await node.resolver.stop()
    await node.ask_tcp(question())
    with pytest.raises(ConnectionResetError):
        await node.ask_tcp(question("other.test"))

    assert node.queries == {"hit": 1, "forwarded": 5, "forwarded_stale": 3, "unreachable": 2}


async def test_a_bug_in_learning_does_not_take_a_told_answer_with_it(start_node: StartNode) -> None:
    """I1: over TCP neither, stale or not."""
    node = await start_node(limits=Limits(stale_after_s=0.05))
    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    await node.ask_tcp(question())

    def buggy(_: str, addresses: object) -> None:
        raise IndexError(addresses)

    node.responder._learn = buggy

    assert await node.ask_tcp(question()) == answer(question(), "192.0.2.7")
    node.clock.forward(3000)
    node.resolver.script = lambda _: None
    assert await node.ask_tcp(question()) == answer(question(), "192.0.2.7", ttl=30)


async def test_a_late_answer_after_a_stale_one_is_not_passed_on_twice(start_node: StartNode) -> None:
    """N13: a client would take the second one for the answer to its next question."""
    node = await start_node(limits=Limits(stale_after_s=0.05))
    await node.ask_tcp(question())
    node.clock.forward(3000)
    late: list[bytes] = []

    def late_for_the_registry(query: bytes) -> list[bytes]:
        if b"\x08registry" in query:
            late.append(answer(query, "192.0.2.99"))
            return []
        return [*late, answer(query, "192.0.2.7")]

    node.resolver.script = late_for_the_registry
    reader, writer = await node.dial()
    writer.write(framed(question(id_=1)))
    assert await read_framed(reader) == answer(question(id_=1), "192.0.2.7", ttl=30)
    writer.write(framed(question("other.test", id_=2)))
    assert await read_framed(reader) == answer(question("other.test", id_=2), "192.0.2.7")
    writer.close()

    assert "192.0.2.99" in node.learned_addresses()


async def test_another_name_at_a_refusing_resolver_resets_the_connection(node: Node) -> None:
    """N13, I1: as near as can be to the refusal that the client would have met."""
    await node.resolver.stop()

    with pytest.raises(ConnectionResetError):
        await node.ask_tcp(question("other.test"))


async def test_a_connection_not_redirected_by_the_kernel_is_closed(node: Node) -> None:
    """I5: relaying it would be dialling ourselves."""
    reader, writer = await node.dial()
    writer.close()
    node.responder._original_dst = lambda _: (ip_address("127.0.0.1"), node.responder.tcp_port)
    reader, writer = await node.dial()
    writer.write(framed(question()))

    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await read_framed(reader)
    writer.close()
    assert node.exempted == []  # nothing was dialled


@pytest.mark.parametrize("asked", [False, True])
async def test_an_idle_connection_is_closed_as_any_server_does(start_node: StartNode, asked: bool) -> None:
    """I8, RFC 7766 section 6.4: with a FIN, since nothing broke, also while the resolver owes an answer."""
    node = await start_node(limits=Limits(tcp_idle_s=0.1))
    node.resolver.script = lambda _: None
    reader, writer = await node.dial()
    if asked:
        writer.write(framed(question("other.test")))
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()
    await eventually(lambda: not node.responder._conversations)


async def test_beyond_the_limit_the_quietest_connection_gives_way(start_node: StartNode) -> None:
    """I8, RFC 7766 section 6.2.2: a new client is worth more than an idle one."""
    node = await start_node(limits=Limits(tcp_connections=2))
    connections = []
    for number in range(3):
        node.clock.forward(1)
        connections.append(await node.dial())
        connections[-1][1].write(framed(question(f"n{number}.test")))
        await read_framed(connections[-1][0])

    async with asyncio.timeout(DEADLINE_S):
        assert await connections[0][0].read() == b""
    connections[1][1].write(framed(question("again.test")))
    assert await read_framed(connections[1][0]) == answer(question("again.test"), "192.0.2.7")
    for _, writer in connections:
        writer.close()
