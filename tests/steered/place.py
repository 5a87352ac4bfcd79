"""Addresses of the node and of the world beside it."""

REGISTRY4, REGISTRY6 = "198.51.100.10", "2001:db8:1::10"
NEIGHBOUR4 = "198.51.100.20"
RESOLVER4, RESOLVER6 = "198.51.100.53", "2001:db8:1::53"
PROBE = "127.0.0.74"
NODE4, NODE4_SECOND, NODE6 = "198.51.100.1", "198.51.100.2", "2001:db8:1::1"
MANY4 = "198.18.0.0/16"
"""Networks behind the world: every address of it answers."""

STEERED = "registry-1.registry.example"
NAMES = (STEERED, "a.b", "x.a-rather-long-host-name.example", "*.wild.example", "*.ab")
LEASE_S = 1.0
