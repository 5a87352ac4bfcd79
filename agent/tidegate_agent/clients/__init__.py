"""Trust-aware steering: who connects, and who is left alone for want of trust (DESIGN 4, N9)."""

from tidegate_agent.clients.everybody import Everybody
from tidegate_agent.clients.forwarded import ForwardedClients
from tidegate_agent.clients.register import Clients
from tidegate_agent.clients.trusted_since import TrustedSince
from tidegate_agent.clients.verdict import Reason

__all__ = ["Clients", "Everybody", "ForwardedClients", "Reason", "TrustedSince"]
