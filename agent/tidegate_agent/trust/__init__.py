"""The system's trust store, and the certificate of this node's authority in it."""

from tidegate_agent.trust.store import Anchor, Store, system_bundle, trusted

__all__ = ["Anchor", "Store", "system_bundle", "trusted"]
