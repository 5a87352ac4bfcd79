"""A store with its fetches, in a directory of a test."""

from pathlib import Path

from tidegate_proxy.fetching.fetch import Fetches, FetchLimits
from tidegate_proxy.fetching.healing import Patience
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.store import Durability, Store
from unit.proxy.reader import until

HASTY = Patience(attempts=3, first_pause_s=0.001, longest_pause_s=0.002, answer_s=5, silence_s=5)


class Place:
    """A store, its fetches, and how they ended."""

    def __init__(
        self,
        state_dir: Path,
        *,
        fetches: int = 16,
        patience: Patience = HASTY,
        durability: Durability = "relaxed",
        quiet_s: float = 0.01,
    ) -> None:
        self.state_dir = state_dir
        self.store = Store.open(state_dir, durability=durability)
        self.ends: list[FetchEnded] = []
        limits = FetchLimits(fetches=fetches, patience=patience, quiet_s=quiet_s)
        self.fetches = Fetches(self.store, limits=limits, observe=self.ends.append)

    async def idle(self) -> None:
        await until(lambda: self.fetches.running() == 0)

    def has(self, digest: Digest) -> bool:
        blob = self.store.blob(digest)
        if blob is None:
            return False
        blob.close()
        return True

    def nothing_remains_of(self, digest: Digest) -> bool:
        return not self.has(digest) and not list((self.state_dir / "partial").iterdir())

    async def close(self) -> None:
        await self.fetches.close()
        self.store.close()
