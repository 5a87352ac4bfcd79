"""What a rule is made of: matches and what is done with the packet; values.

How they are said to the kernel is `expression`'s business, and in nft syntax `listing`'s. Those of rules that
steer nothing are in `observation`, those that read a DNS question in `question`.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

from tidegate_agent.steering.exemption import ByMark, ByUid, Exemption
from tidegate_agent.steering.observation import Observation
from tidegate_agent.steering.question import AsksFor
from tidegate_proxy.endpoint import IPAddress

L4 = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The socket's mark equals `value` under `mask`."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentBy:
    """The socket belongs to this user."""

    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHeld:
    """The packet's protocol is in the lease set: TCP and UDP while the agent lives, nothing otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFlow:
    """Connection tracking sees a new flow; matching it at all is what switches tracking on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class To:
    """The packet goes to this address and port."""

    address: IPAddress
    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class From:
    """The packet comes from this address and port."""

    address: IPAddress
    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToPort:
    """The packet goes to this port."""

    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOver:
    """The packet is of another protocol."""

    l4: L4


@dataclass(frozen=True, slots=True, kw_only=True)
class NotToPort:
    """The packet goes to another port of this protocol."""

    l4: L4
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToMember:
    """The packet's address and TCP port are an element of a set."""

    version: Literal[4, 6]
    set_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """Leave the chain: the packet goes on untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goto:
    """Go on in another chain, for good."""

    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoTrack:
    """Keep connection tracking away from the packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """NAT the connection to a port of this host's loopback address."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectTo:
    """NAT the connection to an address of this host that is not loopback."""

    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteTo:
    """Overwrite a UDP packet's destination."""

    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteFrom:
    """Overwrite a UDP packet's source."""

    address: IPAddress
    port: int


Match = Marked | SentBy | LeaseHeld | NewFlow | To | From | ToPort | NotOver | NotToPort | ToMember | AsksFor
Verdict = Return | Goto | NoTrack | Redirect | RedirectTo | RewriteTo | RewriteFrom
Statement = Match | Verdict | Observation
Rule = tuple[Statement, ...]


def exempt_rule(exemption: Exemption) -> Rule:
    """Leave our own traffic alone."""
    match exemption:
        case ByMark(value=value, mask=mask):
            return (Marked(value=value, mask=mask), Return())
        case ByUid(uid=uid):
            return (SentBy(uid=uid), Return())
        case _:
            assert_never(exemption)
