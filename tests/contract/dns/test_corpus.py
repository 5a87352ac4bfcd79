"""The corpus, sent to the responder itself: what it does with whatever a way of steering brings it.

The rules of nftables keep other names away from it over UDP; those of iptables cannot.
"""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from contract.dns.scripted import Node, framed, read_framed
from dns_corpus import Pair, differs_only_in_ttls, pairs
from tidegate_dns.zone import Zone

StartNode = Callable[..., Awaitable[Node]]

ZONE = Zone.of(["*.steered.test"])
STEERED, OTHER = pairs("steered.test"), pairs("other.test")


def replay(node: Node, corpus: Sequence[Pair], transport: str) -> None:
    """From now on the resolver answers what the corpus has for this transport, and says nothing else."""
    told = {each.query[2:]: [each.over_udp] if transport == "udp" else list(each.over_tcp) for each in corpus}
    node.resolver.script = lambda query: [query[:2] + answer[2:] for answer in told.get(query[2:], ())]


async def ask(node: Node, each: Pair, transport: str, id_: int) -> list[bytes]:
    query = id_.to_bytes(2, "big") + each.query[2:]
    if transport == "udp":
        return [await node.ask(query)]
    reader, writer = await node.dial()
    writer.write(framed(query))
    answers = [await read_framed(reader) for _ in each.over_tcp]
    writer.close()
    return answers


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("corpus", [STEERED, OTHER], ids=["steered", "other"])
async def test_whatever_is_asked_and_answered_comes_back_byte_for_byte(
    start_node: StartNode, corpus: list[Pair], transport: str
) -> None:
    """N13, N12: first as it was said, then with less time to live; other names as said each time."""
    node = await start_node(zone=ZONE)
    replay(node, corpus, transport)
    for number, each in enumerate(corpus):
        expected = [each.over_udp] if transport == "udp" else each.over_tcp
        for round_ in range(2):
            id_ = 2 * number + round_
            told = await ask(node, each, transport, id_)
            assert {answer[:2] for answer in told} == {id_.to_bytes(2, "big")}, each.what
            if round_ == 0 or corpus is OTHER:
                assert [answer[2:] for answer in told] == [answer[2:] for answer in expected], each.what
            else:
                assert all(map(differs_only_in_ttls, expected, told)), each.what

    if corpus is OTHER:
        assert node.queries == {"forwarded": 2 * len(corpus)}
        assert node.learned == []
    else:
        assert len(corpus) > 200
        assert node.queries["hit"] > 100
        assert set(node.queries) == {"forwarded", "hit"}


async def test_pairs_sent_all_at_once_over_one_connection_come_back_each_under_its_id(
    start_node: StartNode,
) -> None:
    """N13, RFC 7766 section 6.2.1: pipelined, and answered in any order; some of memory, most from there."""
    node = await start_node(zone=ZONE)
    corpus = [each for each in [*STEERED, *OTHER] if len(each.over_tcp) == 1]
    replay(node, corpus, "tcp")
    for each in corpus[::3]:
        await ask(node, each, "tcp", 0)
    reader, writer = await node.dial()
    writer.write(b"".join(framed(id_.to_bytes(2, "big") + each.query[2:]) for id_, each in enumerate(corpus)))
    told = {}
    for _ in corpus:
        answer = await read_framed(reader)
        told[int.from_bytes(answer[:2], "big")] = answer
    writer.close()

    for id_, each in enumerate(corpus):
        assert differs_only_in_ttls(each.over_tcp[0], told[id_]), each.what
    assert node.queries["hit"] > 30
