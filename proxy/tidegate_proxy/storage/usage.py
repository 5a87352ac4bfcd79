"""How much the store holds, as the catalogue counts it, and how much it gave up.

Written by the index's thread and the upkeep, read by whoever reports.
"""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Usage:
    """Blobs and their bytes now; bytes evicted since the start."""

    blobs: int = 0
    stored_bytes: int = 0
    evicted_bytes: int = 0
