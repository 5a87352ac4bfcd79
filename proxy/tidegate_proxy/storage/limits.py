"""How much the store may keep. Pure, and light: the configuration is read by commands that start nothing."""

from dataclasses import dataclass

_SMALL = 10
"""What of a small file system stays free: a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be kept. With `yields`, a small file system keeps only a tenth of itself free."""

    max_size_bytes: int
    min_free_bytes: int
    yields: bool = False

    def watermark(self, disk_bytes: int) -> int:
        """How much a file system of that size has to have free."""
        return min(self.min_free_bytes, disk_bytes // _SMALL) if self.yields else self.min_free_bytes
