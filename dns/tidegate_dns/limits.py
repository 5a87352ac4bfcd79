"""The bounds of the DNS part (invariant I8), as one value the configuration can name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Counts are per responder, unless their name says otherwise; waits are in seconds."""

    resolvers: int = 16
    flights: int = 1024
    """Queries on their way to resolvers, each on a socket of its own."""
    flight_bytes: int = 4 << 20
    """Octets of those queries."""
    clients_per_flight: int = 64
    """Clients that wait for the answer to one identical query; for more it is sent again."""
    cached_answers_per_resolver: int = 4096
    cached_bytes_per_resolver: int = 4 << 20
    tcp_connections: int = 256
    tcp_outstanding_per_connection: int = 128
    tcp_idle_s: float = 60.0
    stale_after_s: float = 1.5
    """How long a steered name waits for its resolver before a stale answer goes out."""
    join_within_s: float = 2.0
    """How long identical queries join one in flight; later ones are sent again, on a new socket."""
    answer_within_s: float = 10.0
    """How long a slow resolver's answer is still taken and handed on."""
