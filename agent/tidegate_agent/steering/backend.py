"""What every way of steering offers, and the back end that steers nothing (DESIGN 4).

A back end changes the kernel only between `open` and `close`, and everything it put there goes away when its
process dies. It is used from one thread, the one whose event loop accepts the redirected connections: `renew`
called from anywhere else would keep the lease alive while that loop hangs.
"""

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tidegate_core.errors import TidegateError
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint, IPAddress


class SteeringFailed(TidegateError):
    """The kernel refused a change while steering: what was asked for is not steered, and goes direct."""


class Steering(Protocol):
    """Redirects TCP connections and DNS queries of this host to the agent, as long as the agent lives."""

    @property
    def backend(self) -> str:
        """The name of the mechanism, as the configuration spells it."""
        ...

    @property
    def active(self) -> bool:
        """The lease is held: between `activate` and `suspend`."""
        ...

    @property
    def probe6(self) -> Endpoint | None:
        """Where the probe connects over IPv6, without the lease; None where no rule redirects that."""
        ...

    def open(self) -> None:
        """Put the rules in, inactive but for the probe's; raises StartRefused. After any fork."""
        ...

    def activate(self) -> None:
        """Take the lease: from here on, and until it runs out, the rules match."""
        ...

    def renew(self) -> None:
        """Extend the lease while active, and do nothing otherwise; to be called every quarter of it."""
        ...

    def suspend(self) -> None:
        """Give the lease up at once; addresses and rules stay for the next `activate`."""
        ...

    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None:
        """Steer each endpoint for so many seconds; returns once the kernel has them, never shortens.

        Endpoints that must never be steered (loopback, link-local, the host's own ...) are left out silently.
        """
        ...

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Stop steering new connections to these endpoints; established ones go on."""
        ...

    def steer_dns(
        self,
        udp: Mapping[IPAddress, int],
        tcp_port: int,
        zone: Zone,
        *,
        linked: Sequence[Landing] = (),
        leaving: Sequence[Landing] = (),
    ) -> None:
        """Send each resolver's queries to its own local UDP port, over TCP to `tcp_port`; replaces all.

        Over UDP those for a name of the zone, all of them; some or all others may come too. `linked` are the
        resolvers with link-local addresses, which `udp` never has: their queries can only land on their link,
        and go direct where a back end cannot do that. What is answered at `leaving` still comes from its
        resolver; a back end that cannot do that loses a look-up on its way when resolvers change.
        """
        ...

    def original_dst(self, sock: socket.socket) -> Endpoint | None:
        """Where an accepted connection was going; None when no rule of ours brought it."""
        ...

    def dialled_for(self, original: Endpoint) -> Endpoint:
        """The peer of the client's own socket, once a connection to `original` was redirected (sock_diag)."""
        ...

    def exempt(self, sock: socket.socket) -> None:
        """Keep a socket of ours from being steered; before it connects or sends."""
        ...

    def addresses(self) -> int:
        """How many endpoints are steered now."""
        ...

    def withdraw(self) -> None:
        """Take all rules out at once; established connections go on. Idempotent.

        From then on changes are accepted and change nothing, until `open` puts the rules in again.
        """
        ...

    def close(self) -> None:
        """Withdraw, and let go of everything held. Idempotent."""
        ...


class NoSteering:
    """`backend = "none"`: nothing is redirected, so whoever reaches the agent dialled it directly."""

    backend = "none"
    active = False
    probe6: Endpoint | None = None

    def open(self) -> None: ...
    def activate(self) -> None: ...
    def renew(self) -> None: ...
    def suspend(self) -> None: ...
    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None: ...
    def remove(self, endpoints: Iterable[Endpoint]) -> None: ...
    def steer_dns(
        self,
        udp: Mapping[IPAddress, int],
        tcp_port: int,
        zone: Zone,
        *,
        linked: Sequence[Landing] = (),
        leaving: Sequence[Landing] = (),
    ) -> None: ...
    def exempt(self, sock: socket.socket) -> None: ...
    def withdraw(self) -> None: ...
    def close(self) -> None: ...

    def original_dst(self, sock: socket.socket) -> Endpoint | None:  # noqa: ARG002 (the protocol's signature)
        return None

    def dialled_for(self, original: Endpoint) -> Endpoint:
        return original

    def addresses(self) -> int:
        return 0
