"""The node and the world, joined by a veth pair, with servers in the world."""

import contextlib
from collections.abc import Iterator

from lab.waiting import until

from .namespace import Namespace
from .place import (
    MANY4,
    NEIGHBOUR4,
    NODE4,
    NODE4_SECOND,
    NODE6,
    REGISTRY4,
    REGISTRY6,
    RESOLVER4,
    RESOLVER6,
)
from .world import World


@contextlib.contextmanager
def node_and_world() -> Iterator[tuple[Namespace, Namespace]]:
    """Both, until the end of the block."""
    node, world = Namespace(), Namespace()
    node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(world.pid))
    for namespace in (node, world):
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.run("ip", "link", "set", "eth0", "up")
    for address in (NODE4, NODE4_SECOND, REGISTRY4, NEIGHBOUR4, RESOLVER4):
        owner = node if address in (NODE4, NODE4_SECOND) else world
        owner.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    for address in (NODE6, REGISTRY6, RESOLVER6):
        owner = node if address == NODE6 else world
        owner.run("ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    node.run("ip", "route", "add", MANY4, "via", REGISTRY4)
    world.run("ip", "route", "add", "local", MANY4, "dev", "lo")
    servers = World(world)
    until(lambda: node.greeting(REGISTRY4) == "world", "the world over IPv4")
    until(lambda: node.greeting(REGISTRY6) == "world", "the world over IPv6")
    try:
        yield node, world
    finally:
        servers.close()
        node.close()
        world.close()


def empty(node: Namespace) -> None:
    """No rule and no set of anybody."""
    for program in ("iptables-legacy", "ip6tables-legacy"):
        for words in (("-F",), ("-X",)):
            for table in ("nat", "raw", "filter"):
                node.run("env", f"XTABLES_LOCKFILE={node.path}", program, "-w", "-t", table, *words)
    node.run("ipset", "destroy")
    node.run("nft", "flush", "ruleset")
    until(lambda: node.run("nft", "list", "ruleset") == "", "no rule left")


def reading(node: Namespace) -> str:
    """All rules and sets with our name, whichever mechanism's."""
    found = [node.run("nft", "list", "tables"), node.run("ipset", "list", "-name")]
    for program in (
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "iptables-nft-save",
        "ip6tables-nft-save",
    ):
        found.append(node.run(program, "-t", "nat"))
    return "\n".join(line for text in found for line in text.splitlines() if "tidegate" in line)


def table_names(node: Namespace) -> list[str]:
    return sorted(line.split()[-1] for line in node.run("nft", "list", "tables").splitlines())
