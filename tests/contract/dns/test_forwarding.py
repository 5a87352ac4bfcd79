"""What the responder does with queries over UDP, seen from both of its sides."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import pytest
from dnslib import EDNS0, DNSRecord, EDNSOption

from contract.dns.scripted import (
    REGISTRY,
    Node,
    UdpClient,
    answer,
    bare,
    eventually,
    negative,
    question,
    ttls,
)
from tidegate_dns.address import LearnedAddress
from tidegate_dns.limits import Limits
from tidegate_dns.outcomes import ARRIVED, OUTCOMES
from tidegate_dns.policy import PROBE_ADDRESS, PROBE_NAME
from tidegate_dns.udp import UdpPort

StartNode = Callable[..., Awaitable[Node]]


def with_edns(query: bytes, *, flags: str = "do", size: int = 1232, cookie: bytes = b"\1" * 8) -> bytes:
    record = DNSRecord.parse(query)
    record.add_ar(EDNS0(flags=flags, udp_len=size, opts=[EDNSOption(10, cookie)]))
    return bytes(record.pack())


async def test_a_query_reaches_the_resolver_unchanged_but_for_its_id(node: Node) -> None:
    """N13: EDNS options, cookies and the case of the name are the client's own business."""
    query = with_edns(question("Other.TEST", "TXT"))
    await node.ask(query)

    assert [asked[2:] for asked in node.resolver.asked] == [query[2:]]


@pytest.mark.parametrize("name", ["other.test", REGISTRY])
@pytest.mark.parametrize("rcode", range(16))
async def test_every_rcode_comes_back_byte_for_byte(node: Node, rcode: int, name: str) -> None:
    """N13: an answer is the resolver's own, steered name or not."""
    node.resolver.script = lambda query: bare(query, rcode)
    query = question(name)

    assert await node.ask(query) == bare(query, rcode)


async def test_a_bare_formerr_without_the_question_comes_back(node: Node) -> None:
    """N13: servers of before EDNS answer so, and clients then ask again without it."""
    node.resolver.script = lambda query: query[:2] + b"\x80\x01" + bytes(8)
    query = with_edns(question("other.test"))

    assert await node.ask(query) == query[:2] + b"\x80\x01" + bytes(8)


async def test_unparseable_queries_are_forwarded_and_their_formerr_returned(node: Node) -> None:
    """N13: what we cannot read is the resolver's to judge."""
    node.resolver.script = lambda query: query[:2] + b"\x80\x01" + bytes(8)
    query = b"\xab\xcd\x01\x00\x00\x01\0\0\0\0\0\0\x3fshort"

    assert await node.ask(query) == b"\xab\xcd\x80\x01" + bytes(8)


async def test_each_query_leaves_from_a_fresh_port_under_a_fresh_id(node: Node) -> None:
    """N13, RFC 5452 section 9.2: neither can be guessed from the last one."""
    for number in range(40):
        await node.ask(question(f"n{number}.test", id_=7))

    assert len({port for _, port in node.resolver.asked_from}) > 20
    assert len({asked[:2] for asked in node.resolver.asked}) > 30


async def test_every_socket_of_ours_is_exempted(node: Node) -> None:
    """I5: or the rules would send our own query back to us."""
    await node.ask(question("other.test"))
    await node.ask_tcp(question("other.test"))

    assert [sock.type for sock in node.exempted] == [socket.SOCK_DGRAM, socket.SOCK_STREAM]


def spoil_id(reply: bytes) -> bytes:
    return bytes([reply[0] ^ 0xFF]) + reply[1:]


def spoil_question(reply: bytes) -> bytes:
    return reply.replace(b"\x08registry", b"\x08rEgistrx")


def spoil_type(reply: bytes) -> bytes:
    return reply.replace(b"\x04test\x00\x00\x01", b"\x04test\x00\x00\x1c")


def spoil_response_bit(reply: bytes) -> bytes:
    return reply[:2] + bytes([reply[2] & 0x7F]) + reply[3:]


def spoil_opcode(reply: bytes) -> bytes:
    return reply[:2] + bytes([reply[2] | 0x20]) + reply[3:]


@pytest.mark.parametrize("spoil", [spoil_id, spoil_question, spoil_type, spoil_response_bit, spoil_opcode])
async def test_a_forged_answer_is_ignored_and_the_true_one_taken(
    node: Node, spoil: Callable[[bytes], bytes]
) -> None:
    """N13, RFC 5452 section 9.1: id, question and opcode all have to match."""
    node.resolver.script = lambda query: [spoil(answer(query, "203.0.113.66")), answer(query, "192.0.2.7")]

    assert await node.ask(question()) == answer(question(), "192.0.2.7")
    assert node.learned_addresses() == {"192.0.2.7"}


async def test_an_answer_from_another_port_or_host_is_ignored(node: Node) -> None:
    """N13, RFC 5452 section 9.1: a forger who knows our port and id still does not sit at the resolver's."""
    forgers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    forgers[0].bind((str(node.resolver.address), 0))
    forgers[1].bind(("127.0.0.3", node.resolver.port))

    def forge_first(query: bytes) -> bytes:
        for forger in forgers:
            forger.sendto(answer(query, "203.0.113.66"), node.resolver.asked_from[-1])
        return answer(query, "192.0.2.7")

    node.resolver.script = forge_first
    try:
        assert await node.ask(question()) == answer(question(), "192.0.2.7")
    finally:
        for forger in forgers:
            forger.close()


async def test_the_whole_answer_section_is_learned_before_the_reply_leaves(start_node: StartNode) -> None:
    """N2: a client that connects at once must find its address in the set already."""
    node = await start_node()
    node.resolver.script = lambda query: answer(
        query, "192.0.2.7", "192.0.2.8", ttl=20, chain=["cdn.test", "edge.cdn.test"]
    )
    with node.client() as client:
        seen: list[bool] = []
        learn = node._learn

        def learn_and_look(name: str, addresses: object) -> None:
            seen.append(client.has_nothing())
            learn(name, addresses)  # type: ignore[arg-type]  # as it was called

        node.responder._learn = learn_and_look
        client.send(question())
        reply = await client.receive()

    assert reply == answer(question(), "192.0.2.7", "192.0.2.8", ttl=20, chain=["cdn.test", "edge.cdn.test"])
    assert seen == [True]
    assert [name for name, _ in node.learned] == [REGISTRY]
    assert node.learned_addresses() == {"192.0.2.7", "192.0.2.8"}


async def test_other_names_are_never_learned(node: Node) -> None:
    """N1: steering takes in registries only, and `*.x` one label."""
    for name in ("other.test", "sub.registry.test", "wild.test", "a.b.wild.test"):
        await node.ask(question(name))
    assert node.learned == []

    await node.ask(question("One.Wild.Test"))
    assert [name for name, _ in node.learned] == ["one.wild.test"]


async def test_an_answer_that_could_not_be_learned_still_goes_out(node: Node) -> None:
    """I1: unsteered and true is better than nothing."""
    node.set_is_broken = True

    assert await node.ask(question()) == answer(question(), "192.0.2.7")
    assert node.observed["unsteered"] == 1


async def test_a_bug_in_learning_does_not_take_the_answer_with_it(node: Node) -> None:
    """I1: a bug in a handler never fails what would have worked without us."""
    reported: list[object] = []

    def buggy(_: str, addresses: Sequence[LearnedAddress]) -> None:
        raise IndexError(addresses)

    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    node.responder._learn = buggy

    assert await node.ask(question()) == answer(question(), "192.0.2.7")
    assert len(reported) == 1


async def test_identical_queries_in_flight_are_one_and_each_client_gets_its_id(node: Node) -> None:
    """N13: a pull's clients ask the same at the same moment."""
    held: list[bytes] = []
    node.resolver.script = held.append
    clients = [node.client() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(question(id_=100 + number))
    await eventually(lambda: bool(held) and node.observed.get("forwarded") == 5)
    replier = node.resolver._udp
    assert replier is not None
    replier.sendto(answer(held[0], "192.0.2.7"), node.resolver.asked_from[0])
    replies = [await client.receive() for client in clients]
    for client in clients:
        client.__exit__()

    assert replies == [answer(question(id_=100 + number), "192.0.2.7") for number in range(5)]
    assert len(node.resolver.asked) == 1


async def test_a_flight_with_many_clients_is_followed_by_another(start_node: StartNode) -> None:
    """N13, I8: the bound on who waits for one answer makes nobody wait for none."""
    node = await start_node(limits=Limits(clients_per_flight=2))
    held: list[bytes] = []
    node.resolver.script = held.append
    clients = [node.client() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(question(id_=100 + number))
    await eventually(lambda: len(held) == 3)
    replier = node.resolver._udp
    assert replier is not None
    for query, asker in zip(held, node.resolver.asked_from, strict=True):
        replier.sendto(answer(query, "192.0.2.7"), asker)
    replies = [await client.receive() for client in clients]
    for client in clients:
        client.__exit__()

    assert replies == [answer(question(id_=100 + number), "192.0.2.7") for number in range(5)]
    assert node.queries == {"forwarded": 5}


async def test_queries_with_different_cookies_are_not_one(node: Node) -> None:
    """N13: the cache and the flights are keyed by the whole message but its id."""
    for cookie in (b"\1" * 8, b"\2" * 8):
        await node.ask(with_edns(question(), cookie=cookie))

    assert len(node.resolver.asked) == 2


async def test_a_clients_own_retry_is_sent_on(node: Node) -> None:
    """N13: the first datagram may be lost; waiting for it would lose the retry too."""
    node.resolver.script = lambda query: answer(query, "192.0.2.7") if len(node.resolver.asked) > 1 else None
    with node.client() as client:
        client.send(question("other.test"))
        await eventually(lambda: len(node.resolver.asked) == 1)
        client.send(question("other.test"))

        assert await client.receive() == answer(question("other.test"), "192.0.2.7")


async def test_after_the_joining_time_a_query_starts_anew_and_a_late_answer_still_arrives(
    start_node: StartNode,
) -> None:
    """N13: a slow resolver's answer is not thrown away, and does not hold others up."""
    node = await start_node(limits=Limits(join_within_s=0.05))
    held: list[bytes] = []
    joined: list[int] = []
    node.resolver.script = held.append
    with node.client() as patient, node.client() as other:
        patient.send(question("slow.test", id_=1))
        await eventually(lambda: len(held) == 1)

        def asked_anew() -> bool:
            other.send(question("slow.test", id_=len(joined)))
            joined.append(len(held))
            return len(held) > 1

        await eventually(asked_anew)
        replier = node.resolver._udp
        assert replier is not None
        replier.sendto(answer(held[0], "192.0.2.7"), node.resolver.asked_from[0])

        assert await patient.receive() == answer(question("slow.test", id_=1), "192.0.2.7")
        assert node.resolver.asked_from[1] != node.resolver.asked_from[0]


async def test_flights_are_bounded_and_the_oldest_gives_way(start_node: StartNode) -> None:
    """I8: a black hole with many clients does not eat the descriptors."""
    node = await start_node(limits=Limits(flights=3))
    node.resolver.script = lambda _: None
    with node.client() as client:
        for number in range(20):
            client.send(question(f"n{number}.test"))
        await eventually(lambda: len(node.resolver.asked) == 20)
        node.resolver.script = lambda query: answer(query, "192.0.2.7")
        client.send(question("new.test"))

        assert await client.receive() == answer(question("new.test"), "192.0.2.7")
    assert sum(len(p.forwarder._flights) for p in _ports(node) if p.forwarder) <= 3


async def test_flights_are_bounded_in_octets_too(start_node: StartNode) -> None:
    """I8: a datagram may have 64 KiB, and none is kept for long."""
    node = await start_node(limits=Limits(flight_bytes=100_000, answer_within_s=60))
    node.resolver.script = lambda _: None
    with node.client() as client:
        for number in range(20):
            client.send(question(f"n{number}.test") + bytes(30_000))
            await eventually(lambda number=number: len(node.resolver.asked) == number + 1)
        assert sum(len(p.forwarder._flights) for p in _ports(node) if p.forwarder) == 3
        assert node.queries["unanswered"] == 17
        client.send(question("n0.test") + bytes(60_000))
        await eventually(lambda: len(node.resolver.asked) == 21)
        assert node.queries["unanswered"] == 19
        node.resolver.script = lambda query: answer(query, "192.0.2.7")
        client.send(question("new.test"))

        assert await client.receive() == answer(question("new.test"), "192.0.2.7")


async def test_a_warm_name_is_answered_without_the_resolver_its_ttl_aged(warm_node: Node) -> None:
    """N13: a replay is the resolver's answer with the time that has passed taken off."""
    assert await warm_node.ask(question(id_=9)) == answer(question(id_=9), "192.0.2.7", ttl=300)
    warm_node.clock.forward(100.5)
    assert await warm_node.ask(question(id_=10)) == answer(question(id_=10), "192.0.2.7", ttl=200)
    warm_node.clock.forward(0.6)
    assert await warm_node.ask(question(id_=11)) == answer(question(id_=11), "192.0.2.7", ttl=199)

    assert len(warm_node.resolver.asked) == 1
    warm_node.clock.forward(199)
    await warm_node.ask(question())
    assert len(warm_node.resolver.asked) == 2


async def test_a_replayed_answer_is_learned_for_longer_than_the_client_may_keep_it(warm_node: Node) -> None:
    """I1, N2: the element must not run out before the client's own cache does."""
    warm_node.clock.forward(250.9)
    warm_node.learned.clear()
    reply = await warm_node.ask(question())
    learned_at = warm_node.clock.now
    warm_node.clock.forward(0.05)
    assert await warm_node.ask(question()) == reply

    ((_, (address,)),) = warm_node.learned
    assert isinstance(address, LearnedAddress)
    client_keeps_until = warm_node.clock.now + DNSRecord.parse(reply).rr[0].ttl
    assert learned_at + address.ttl_s > client_keeps_until


async def test_a_ttl_of_zero_is_not_replayed_while_the_resolver_answers(node: Node) -> None:
    """N13: TTL 0 means this once."""
    node.resolver.script = lambda query: answer(query, "192.0.2.7", ttl=0)
    await node.ask(question())
    await node.ask(question())

    assert len(node.resolver.asked) == 2


async def test_nodata_of_a_steered_name_is_replayed_for_its_negative_ttl(node: Node) -> None:
    """N13, RFC 2308 section 5: most registries have no AAAA, and every client asks for one."""
    node.resolver.script = lambda query: negative(query, minimum=60)
    told = [await node.ask(question(rrtype="AAAA"))]
    for _ in range(2):
        told.append(await node.ask(question(rrtype="AAAA")))
        node.clock.forward(20)
    assert told[0] == negative(question(rrtype="AAAA"), minimum=60)
    told.append(await node.ask(question(rrtype="AAAA")))
    assert [ttls(each) for each in told] == [[900], [60], [40], [20]]
    assert len(node.resolver.asked) == 1

    node.clock.forward(20)
    await node.ask(question(rrtype="AAAA"))
    assert len(node.resolver.asked) == 2


async def test_other_names_are_never_answered_from_memory(node: Node) -> None:
    """N13: we are not this host's cache."""
    for _ in range(3):
        await node.ask(question("other.test"))

    assert len(node.resolver.asked) == 3


async def test_a_truncated_answer_is_passed_on_and_not_kept(node: Node) -> None:
    """N13: the client asks again over TCP; a part of an answer is never replayed."""

    def truncated(query: bytes) -> bytes:
        reply = bytearray(answer(query, "192.0.2.7"))
        reply[2] |= 0x02
        return bytes(reply)

    node.resolver.script = truncated
    for _ in range(2):
        assert await node.ask(question()) == truncated(question())

    assert len(node.resolver.asked) == 2


async def test_a_response_or_a_scrap_is_not_forwarded(node: Node) -> None:
    """I8: nothing that is no query makes us send one."""
    with node.client() as client:
        for scrap in (b"", b"\0", bytes(11), answer(question(), "192.0.2.7")):
            client.send(scrap)
        await eventually(lambda: node.observed.get("ignored") == 4)

    assert node.resolver.asked == []


async def test_every_query_is_counted_once_as_it_arrives(start_node: StartNode) -> None:
    """DESIGN 9: what came of it later is counted beside that."""
    node = await start_node(limits=Limits(stale_after_s=0.05, answer_within_s=0.1))
    asked = [question(), question(), question(PROBE_NAME), answer(question(), "192.0.2.7")]
    for query in asked[:3]:
        await node.ask(query)
    with node.client() as client:
        client.send(asked[3])
        node.clock.forward(3000)
        node.resolver.script = lambda _: None
        client.send(question(id_=1))
        assert ttls(await client.receive()) == [30]
        node.clock.forward(2)
        client.send(question(id_=2))
        assert ttls(await client.receive()) == [30]
        for _ in range(3):
            client.send(question("other.test"))
        await eventually(lambda: node.queries.get("unanswered") == 3)

    assert {outcome: node.queries.get(outcome, 0) for outcome in ARRIVED} == {
        "hit": 1,
        "local": 1,
        "ignored": 1,
        "forwarded": 1 + 1 + 3,
        "stale": 1,
        "dropped": 0,
    }
    assert node.queries["forwarded_stale"] == 1
    assert set(node.queries) <= set(OUTCOMES)


async def test_the_probe_name_is_answered_here_at_every_port(node: Node) -> None:
    """I3: the probe must not need the outside."""
    query = question(PROBE_NAME.upper())
    for host, port in ((node.loopback, node.port), ("127.0.0.1", node.responder.udp_ports[PROBE_ADDRESS])):
        with UdpClient(host, port) as client:
            client.send(query)
            reply = DNSRecord.parse(await client.receive())
            assert [str(record.rdata) for record in reply.rr] == [str(PROBE_ADDRESS)]
    assert str(DNSRecord.parse(await node.ask_tcp(query)).a.rdata) == str(PROBE_ADDRESS)

    assert node.resolver.asked == [] and node.resolver.tcp_connections == 0
    assert node.learned == []


async def test_the_probes_pseudo_resolver_refuses_other_names(node: Node) -> None:
    """I3: it stands for nobody, so it can forward to nobody."""
    with UdpClient("127.0.0.1", node.responder.udp_ports[PROBE_ADDRESS]) as client:
        client.send(question("other.test"))

        assert DNSRecord.parse(await client.receive()).header.rcode == 5
    assert node.resolver.asked == []


async def test_the_resolver_of_a_cloud_is_steered_though_its_address_is_link_local(node: Node) -> None:
    """N13: 169.254.169.253 has no scope, and no socket is bound for it."""
    cloud = ip_address("169.254.169.253")

    assert cloud in node.responder.set_resolvers([cloud])


async def test_resolvers_that_stay_keep_their_port_and_what_they_said(warm_node: Node) -> None:
    """N13: a change of resolv.conf is no reason to forget."""
    before = dict(warm_node.responder.udp_ports)
    added = warm_node.responder.set_resolvers([ip_address("127.0.0.9"), warm_node.resolver.address])
    assert added[warm_node.resolver.address] == before[warm_node.resolver.address]

    warm_node.responder.set_resolvers([])
    assert set(warm_node.responder.udp_ports) == {PROBE_ADDRESS}
    with UdpClient(warm_node.loopback, before[warm_node.resolver.address]) as old:
        old.send(question())
        assert await old.receive() == answer(question(), "192.0.2.7")

    warm_node.responder.set_resolvers([warm_node.resolver.address])
    await warm_node.ask(question())
    assert len(warm_node.resolver.asked) == 1


def _ports(node: Node) -> list[UdpPort]:
    return list(node.responder._ports.values())
