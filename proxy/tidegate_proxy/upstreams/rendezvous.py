"""Which of several equal tiers is the home of a digest (FEATURES T6).

Highest random weight hashing (Thaler and Ravishankar, 1998): each node ranks all tiers for a key by a hash
of both, alike on every node. When a tier goes, only its own keys move, to the next in their ranking.
"""

from collections.abc import Sequence
from hashlib import blake2b


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """The names, the key's home first, then who takes over."""
    return sorted(names, key=lambda name: _weight(name, key), reverse=True)


def _weight(name: str, key: str) -> bytes:
    return blake2b(f"{name}\n{key}".encode(), digest_size=8).digest()
