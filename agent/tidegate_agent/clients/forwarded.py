"""Clients behind this host's bridges: known by their address alone, and whether they refused our certificate.

Their processes, mounts and trust stores are in namespaces that are not looked into. So each address is
intercepted until a client there refuses; that connection it loses, and the address is left alone for a day.
"""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from tidegate_agent.clients.verdict import Reason
from tidegate_proxy.endpoint import IPAddress
from tidegate_proxy.interception.interceptor import Arrival, distrusts

DISTRUST_KEPT = timedelta(hours=24)
_MOST = 1024


class ForwardedClients:
    """Answers `Interceptor.why_splice` for connections that came by a bridge, and hears how they ended."""

    def __init__(
        self,
        *,
        has_login: Callable[[str, int], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`has_login` tells whether this node has a login of its own for the registry of a name and port."""
        self._has_login = has_login
        self._now = now
        self._distrusting: OrderedDict[IPAddress, datetime] = OrderedDict()

    def withheld(self, arrival: Arrival) -> str | None:
        """What the node's own password opens is for the node, not for whatever runs in its containers."""
        has_login = self._has_login(arrival.sni, arrival.original.port)
        return Reason.NODE_LOGIN if has_login else None

    def why_splice(self, arrival: Arrival) -> str | None:
        """The reason to leave a connection alone, None to intercept it."""
        until = self._distrusting.get(arrival.peer.address)
        return None if until is None or self._now() >= until else Reason.DISTRUSTED

    def handshake_failed(self, arrival: Arrival, error: OSError) -> None:
        """Leave an address alone whose client does not accept our certificate."""
        if not distrusts(error):
            return
        address = arrival.peer.address
        self._distrusting[address] = self._now() + DISTRUST_KEPT
        self._distrusting.move_to_end(address)
        if len(self._distrusting) > _MOST:
            self._distrusting.popitem(last=False)
        structlog.get_logger().warning(
            "a container does not trust this node's CA: its connections are spliced from now on",
            address=str(address),
            next_step="give its image the certificate, or leave it as it is",
        )

    def left_alone(self) -> tuple[tuple[IPAddress, datetime], ...]:
        """The addresses that are left alone now, and until when."""
        now = self._now()
        return tuple((address, until) for address, until in self._distrusting.items() if until > now)
