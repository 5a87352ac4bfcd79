"""What a rule can tell of connections that it does not steer, and of those that other hosts send; values.

Beside `ruleset`'s statements: those of the rules that watch what goes past the agent (`watch`) and those for
containers behind this host's bridges (`forwarded`). `encoding` and `listing` know how they are said.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

TCP_HEADER_WORDS = (5, 8)
"""Without options, and with time-stamps: but in MPTCP, a first segment of data has no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginsHello:
    """The TCP payload, behind a header of so many 32-bit words, begins as a ClientHello (RFC 8446 5.1, 4)."""

    tcp_header_words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """Not more often than this."""

    per_second: int
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A copy of the packet's first `copied_bytes` for whoever listens to the NFLOG group."""

    group: int
    prefix: str
    copied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CameIn:
    """The packet came in by this interface."""

    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoesOut:
    """The packet goes out by this interface."""

    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FromNetwork:
    """The packet's source is in this network."""

    network: IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class FromPort:
    """The packet comes from this port."""

    l4: Literal["tcp", "udp"]
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirected:
    """The packet's connection has another destination than its client asked for."""


Observation = BeginsHello | AtMost | Log | CameIn | GoesOut | FromNetwork | FromPort | Redirected
