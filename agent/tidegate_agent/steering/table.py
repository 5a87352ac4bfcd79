"""A table of family inet with its sets and chains; values (nft(8))."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from tidegate_agent.steering.statement import Rule


class KeyType(Enum):
    """What a set holds, in nft's words."""

    PROTOCOL = "inet_proto"
    ENDPOINT4 = "ipv4_addr . inet_service"
    ENDPOINT6 = "ipv6_addr . inet_service"


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementSet:
    """A set whose elements time out; `size` 0 is unbounded."""

    name: str
    key: KeyType
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHook:
    """Where a base chain sees this host's own traffic, or another place of a packet's way."""

    type: Literal["nat", "route", "filter"]
    priority: int
    at: Literal["prerouting", "input", "forward", "output"] = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain in a hook; without one, a chain that others go to."""

    name: str
    hook: OutputHook | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of family inet; `owned` ties its life to the process that makes it."""

    name: str
    owned: bool
    sets: tuple[ElementSet, ...] = ()
    chains: tuple[Chain, ...] = ()
