"""The pull-through cache as one part: store, index, fetches and registry semantics over one upstream.

It knows nothing of steering or TLS termination: a node's agent feeds it intercepted connections, a
central tier its own listeners.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from tidegate_proxy.fetching.fetch import Fetches
from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.blobs import Blobs
from tidegate_proxy.registry.lists import Lists
from tidegate_proxy.registry.manifests import Manifests
from tidegate_proxy.registry.membership import Membership
from tidegate_proxy.registry.private import Private
from tidegate_proxy.registry.promised_sizes import PromisedSizes
from tidegate_proxy.registry.proofs import Proofs
from tidegate_proxy.registry.public import Readable
from tidegate_proxy.registry.registry import RegistryService
from tidegate_proxy.registry.rights import Rights
from tidegate_proxy.registry.tag_tiers import TagTiers
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.limits import Limits
from tidegate_proxy.storage.store import Durability, Store
from tidegate_proxy.storage.upkeep import Upkeep
from tidegate_proxy.storage.usage import Usage
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.rate_limits import RateLimits
from tidegate_proxy.upstreams.retrying import Retrying
from tidegate_proxy.upstreams.signed_in import SignedIn
from tidegate_proxy.upstreams.upstream import Upstream

PATIENCE_S = 2.0
"""How long an upstream may keep a client waiting that can be served from the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullThroughCache:
    """What answers registry requests, and what it stands on."""

    service: RegistryService
    store: Store
    index: Index
    fetches: Fetches
    manifests: Manifests
    rate_limits: RateLimits
    readable: Readable

    @classmethod
    async def open(
        cls,
        parts: AsyncExitStack,
        *,
        state_dir: Path,
        durability: Durability,
        stale_max: timedelta,
        upstream: Upstream,
        fetch_ended: Callable[[FetchEnded], None],
        say: Callable[[str], None],
        credentials: Credentials | None = None,
        tiers: TagTiers | None = None,
        rights: Rights | None = None,
        pushes: bool = True,
        limits: Limits | None = None,
    ) -> Self:
        """Everything open, to be closed by `parts`; raises StartRefused for an unusable state directory.

        Without `limits` nothing is evicted.
        """
        upstream = Retrying(upstream)
        rate_limits = RateLimits(_now)
        sizes = PromisedSizes()
        store = Store.open(state_dir, durability=durability)
        parts.callback(store.close)
        index = Index.open(state_dir / "index.sqlite", say=say)
        parts.push_async_callback(index.close)
        store.stored = index.catalogue.stored
        upkeep = Upkeep(store, index, limits or Limits(max_size_bytes=2**63, min_free_bytes=0), say=say)
        credentials = credentials or Credentials(clock=time.monotonic)
        anonymous = Anonymous(upstream, clock=time.monotonic, challenged=credentials.challenged)
        parts.push_async_callback(anonymous.close)
        signed_in = SignedIn(upstream, credentials, clock=time.monotonic)
        parts.push_async_callback(signed_in.close)
        membership = Membership(index)
        readable = Readable(
            anonymous=anonymous,
            signed_in=signed_in,
            credentials=credentials,
            index=index,
            membership=membership,
            now=_now,
            patience_s=PATIENCE_S,
        )
        parts.push_async_callback(readable.close)

        def ended(end: FetchEnded) -> None:
            upkeep.look_soon()
            if end.ending in ("mismatch", "broken"):
                sizes.forget(end.digest)
            fetch_ended(end)

        fetches = Fetches(store, observe=ended)
        parts.push_async_callback(fetches.close)
        parts.push_async_callback(_end, _start(upkeep))
        proofs = Proofs(membership=membership, readable=readable)
        manifests = Manifests(
            store=store,
            index=index,
            proofs=proofs,
            tiers=tiers or TagTiers(),
            now=_now,
            stale_max=stale_max,
            patience_s=PATIENCE_S,
            mismatched=lambda digest: fetch_ended(
                FetchEnded(digest=digest, ending="mismatch", received_bytes=0)
            ),
            promised=sizes.learn,
        )
        parts.push_async_callback(manifests.close)
        service = RegistryService(
            upstream=upstream,
            anonymous=anonymous,
            signed_in=signed_in,
            credentials=credentials,
            readable=readable,
            private=Private(
                upstream=upstream,
                anonymous=anonymous,
                signed_in=signed_in,
                rights=Rights(clock=time.monotonic, now=_now) if rights is None else rights,
                membership=membership,
                limits=rate_limits,
            ),
            membership=membership,
            proofs=proofs,
            manifests=manifests,
            blobs=Blobs(store=store, index=index, fetches=fetches, sizes=sizes, now=_now),
            lists=Lists(listings=index.listings, now=_now, stale_max=stale_max, patience_s=PATIENCE_S),
            index=index,
            limits=rate_limits,
            patience_s=PATIENCE_S,
            pushes=pushes,
        )
        return cls(
            service=service,
            store=store,
            index=index,
            fetches=fetches,
            manifests=manifests,
            rate_limits=rate_limits,
            readable=readable,
        )

    @property
    def usage(self) -> Usage:
        """How much is stored, and how much was evicted."""
        return self.index.catalogue.usage

    async def purge(self, digest: Digest) -> int:
        """Give up one blob or manifest; returns its bytes, 0 where there was none. Raises OSError.

        Who reads it goes on reading, and a fetch of it that is under way stores it anew.
        """
        size_bytes = await self.store.run(self.store.remove, digest)
        self.manifests.drop(digest)
        await self.index.forget_missing([digest], self.store.holds)
        return size_bytes


def _start(upkeep: Upkeep) -> asyncio.Task[None]:
    task = asyncio.create_task(upkeep.run(), name="upkeep of the store")

    def told(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug: nothing is evicted from here on, and somebody should know.
            context = {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    task.add_done_callback(told)
    return task


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _now() -> datetime:
    return datetime.now(UTC)
