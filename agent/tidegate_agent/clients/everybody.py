"""Every client in the register it belongs in: this host's own, or those behind its bridges."""

from collections.abc import Callable
from dataclasses import dataclass

from tidegate_agent.clients.forwarded import ForwardedClients
from tidegate_agent.clients.register import Clients
from tidegate_proxy.endpoint import IPAddress
from tidegate_proxy.interception.interceptor import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Everybody:
    """Answers the interceptor's questions about a client."""

    host: Clients
    forwarded: ForwardedClients
    is_forwarded: Callable[[IPAddress], bool]

    def withheld(self, arrival: Arrival) -> str | None:
        """Why what this node would serve is not for this client, None when it is."""
        return self.forwarded.withheld(arrival) if self.is_forwarded(arrival.peer.address) else None

    def why_splice(self, arrival: Arrival) -> str | None:
        """The reason to leave alone a client that would be shown our certificate."""
        if self.is_forwarded(arrival.peer.address):
            return self.forwarded.why_splice(arrival)
        return self.host.why_splice(arrival.peer, arrival.original, arrival.sni)

    def handshake_failed(self, arrival: Arrival, error: OSError) -> None:
        """Remember a client that does not accept our certificate."""
        if self.is_forwarded(arrival.peer.address):
            self.forwarded.handshake_failed(arrival, error)
        else:
            self.host.handshake_failed(arrival, error)
