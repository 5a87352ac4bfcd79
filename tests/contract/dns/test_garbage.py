"""The responder between a client and a resolver that both send mutated messages."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest_asyncio

from contract.dns.scripted import Node, answer, eventually, framed, question
from dns_corpus import pairs
from dns_corpus.mutator import Mutator
from tidegate_dns.limits import Limits
from tidegate_dns.zone import Zone

StartNode = Callable[..., Awaitable[Node]]

CORPUS = [*pairs("steered.test"), *pairs("other.test")]
TRIES = 10
LIMITS = Limits(stale_after_s=0.05, answer_within_s=0.2, tcp_idle_s=0.5, tcp_connections=8, flights=64)


@pytest_asyncio.fixture
async def trouble() -> list[dict[str, Any]]:
    """What tasks and call-backs raised."""
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    return raised


async def a_node_between(start_node: StartNode, seed: int) -> tuple[Node, Mutator]:
    node = await start_node(zone=Zone.of(["*.steered.test"]), limits=LIMITS)
    told = Mutator(seed, [each.over_udp for each in CORPUS], at_most=1500)
    node.resolver.script = lambda query: [query[:2] + told.next()[2:], told.next()]
    return node, Mutator(seed + 1, [each.query for each in CORPUS], at_most=1500)


async def works(node: Node) -> None:
    """The garbage may still be under way, so a client has to ask as often as clients do."""
    name = question("fresh.steered.test")
    node.resolver.script = lambda query: answer(query, "192.0.2.7") if query[2:] == name[2:] else None
    for _ in range(TRIES):
        with suppress(TimeoutError):
            assert await node.ask(name, within_s=1) == answer(name, "192.0.2.7")
            break
    else:
        raise AssertionError("no answer over UDP")
    assert await node.ask_tcp(name) == answer(name, "192.0.2.7")


async def test_garbage_over_udp_is_survived(start_node: StartNode, trouble: list[dict[str, Any]]) -> None:
    """N13, I8: nothing raises, and the next client is served."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201 - to have the same packets again
    node, asked = await a_node_between(start_node, seed)
    with node.client() as client:
        for number in range(1500):
            client.send(asked.next())
            if number % 50 == 0:
                await asyncio.sleep(0)

        await eventually(lambda: sum(node.queries.values()) > 500)
        await works(node)
    await eventually(
        lambda: sum(len(p.forwarder._flights) for p in node.responder._ports.values() if p.forwarder) == 0
    )
    assert trouble == []


async def test_garbage_over_tcp_is_survived(start_node: StartNode, trouble: list[dict[str, Any]]) -> None:
    """N13, I8: streams that lie about their lengths and end anywhere leave no connection behind."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201 - to have the same packets again
    node, asked = await a_node_between(start_node, seed)
    rng = random.Random(seed)
    for _ in range(60):
        _, writer = await node.dial()
        stream = b"".join(framed(asked.next()) if rng.random() < 0.9 else rng.randbytes(3) for _ in range(20))
        for piece in asked.pieces(stream):
            writer.write(piece)
            await asyncio.sleep(0)
        writer.close()

    await eventually(lambda: not node.responder._conversations)
    await works(node)
    assert trouble == []
