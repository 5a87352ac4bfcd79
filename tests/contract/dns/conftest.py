"""The DNS contract tests run on the loop of production and on the plain one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest_asyncio
import uvloop

from contract.dns.scripted import REGISTRY, Node, ScriptedResolver, answer, question


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest_asyncio.fixture
async def resolver() -> AsyncIterator[ScriptedResolver]:
    """Says that every name is at 192.0.2.7."""
    resolver = await ScriptedResolver(lambda query: answer(query, "192.0.2.7")).start()
    yield resolver
    await resolver.stop()


@pytest_asyncio.fixture
async def start_node(resolver: ScriptedResolver) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Starts nodes before the resolver, with whatever a test wants of them; closes them all."""
    nodes: list[Node] = []

    async def start(**wishes: object) -> Node:
        node = Node(**{"resolver": resolver, **wishes})  # type: ignore[arg-type]  # a test's own wishes
        nodes.append(node)
        return await node.start()

    yield start
    for node in nodes:
        await node.responder.close()


@pytest_asyncio.fixture
async def node(start_node: Callable[..., Awaitable[Node]]) -> Node:
    return await start_node()


@pytest_asyncio.fixture
async def warm_node(node: Node) -> Node:
    """A node that has been told the registry's A record, TTL 300."""
    await node.ask(question(REGISTRY))
    return node
