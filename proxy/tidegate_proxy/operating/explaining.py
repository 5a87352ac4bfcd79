"""Why the next pull of an image would be a hit or a miss, from what is known here: nobody is asked.

The order is that of a pull: is it steered, may it be read, what does the tag name, what of that is there,
and who would be asked for the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidegate_proxy.fetching.outcome import FetchEnded
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.platform import Platform
from tidegate_proxy.oci.reference import Tag
from tidegate_proxy.operating.forms import BlobFact, Explained, Fact, Outlook
from tidegate_proxy.operating.image_tree import Part, image_tree
from tidegate_proxy.operating.named import NoSuchRegistry, site_of
from tidegate_proxy.registry.public import BELIEVED_FOR
from tidegate_proxy.registry.pull_through import PullThroughCache
from tidegate_proxy.registry.tag_tiers import TagTiers
from tidegate_proxy.site import Registries, Site
from tidegate_proxy.storage.index import TagVariant
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.tiers import Tiers

_MOST_FAILURES = 256
_MOST_BLOBS = 500
_MOST_ERRORS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered:
    """Whether connections come to the cache at all, and if not, why and what to type."""

    active: bool
    reason: str = ""
    next_step: str = ""


class Failures:
    """Why the last fetch of a digest did not end well; of so many digests."""

    def __init__(self) -> None:
        self._causes: dict[Digest, str] = {}

    def fetched(self, end: FetchEnded) -> None:
        """A fetch ended."""
        self._causes.pop(end.digest, None)
        if end.ending != "stored":
            if len(self._causes) >= _MOST_FAILURES:
                self._causes.pop(next(iter(self._causes)))
            self._causes[end.digest] = f"{end.ending}: {end.cause}" if end.cause else end.ending

    def of(self, digest: Digest) -> str:
        return self._causes.get(digest, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explaining:
    """Looks at the parts; changes none."""

    cache: PullThroughCache
    registries: Registries
    upstreams: Tiers
    tiers: TagTiers
    credentials: Credentials
    steered: Callable[[], Steered]
    failures: Failures
    stale_max: timedelta
    platform: Platform
    now: Callable[[], datetime]

    async def image(self, name: ImageName) -> Explained:
        """What the next pull of it would get."""
        name = name.or_latest
        try:
            site = site_of(self.registries, name)
        except NoSuchRegistry as error:
            fact = Fact(about="registry", ok=False, detail=error.cause)
            return Explained(
                reference=str(name),
                outlook="not cached",
                because=error.cause,
                next_step=error.next_step,
                facts=[fact],
                blobs=[],
            )
        steered = self.steered()
        variant = await self._variant(site, name)
        digest = variant.digest if variant is not None else None
        if isinstance(name.reference, Digest):
            digest = name.reference
        tree = await image_tree(self.cache.store, digest) if digest is not None else None
        parts = self._wanted(tree)
        unfinished = await self.cache.store.run(self._unfinished)
        blobs = [self._blob(part, unfinished) for part in parts[:_MOST_BLOBS]]
        readable = await self._readable(site, name)
        held = digest is not None and await self.cache.index.members.holds(
            site.namespace, name.repository.name, digest
        )
        dark = self.upstreams.dark(site)
        facts = [
            self._steering(site, steered),
            readable,
            self._tag(site, name, variant),
            self._manifest(name, digest, tree, held=held),
            _content(tree, blobs, len(parts)),
            self._upstream(site, dark=dark),
            *self._limits(site),
            *self._failed(parts),
        ]
        outlook, because, next_step = self._outlook(
            name, site, steered, variant, tree, blobs, readable=readable.ok, held=held, dark=dark
        )
        return Explained(
            reference=str(name),
            outlook=outlook,
            because=because,
            next_step=next_step,
            facts=facts,
            blobs=blobs,
        )

    def _outlook(
        self,
        name: ImageName,
        site: Site,
        steered: Steered,
        variant: TagVariant | None,
        tree: Part | None,
        blobs: Sequence[BlobFact],
        *,
        readable: bool,
        held: bool,
        dark: bool,
    ) -> tuple[Outlook, str, str]:
        if not steered.active:
            return "not cached", f"pulls do not come here: {steered.reason}", steered.next_step
        pull = f"tidegate pull {name}"
        if tree is None or not held:
            if isinstance(name.reference, Tag) and variant is None:
                return "miss", "the tag was not pulled yet, or was purged or deleted", pull
            return "miss", "its manifest is not cached", pull
        absent = [blob for blob in blobs if blob.state != "present"]
        if not readable:
            why = "it is not known to be readable by everyone: each client's own login is checked first"
            return ("miss" if absent else "revalidate"), why, "see docs/operations/private.md"
        if absent:
            return "miss", f"{len(absent)} of {len(blobs)} blobs and manifests are not here", pull
        if variant is None or self._believed(site, name, variant):
            return "hit", "all of it is here, and nobody has to be asked", ""
        if dark:
            if self.now() - variant.checked_at > self.stale_max:
                why = "its registry does not answer, and the tag was seen too long ago to be served stale"
                return "miss", why, "set [cache] stale_max, or wait for the registry"
            return "stale", "its registry does not answer: what is cached is served", ""
        return "revalidate", "all of it is here; one HEAD asks the registry whether the tag has moved", ""

    def _believed(self, site: Site, name: ImageName, variant: TagVariant) -> bool:
        return self.tiers.believes(
            site.registry,
            name.repository.name,
            str(name.reference),
            checked_at=variant.checked_at,
            now=self.now(),
        )

    async def _variant(self, site: Site, name: ImageName) -> TagVariant | None:
        if not isinstance(name.reference, Tag):
            return None
        variants = await self.cache.index.tag_variants(
            site.registry, name.repository.name, name.reference.name
        )
        return max(variants, key=lambda each: each.checked_at, default=None)

    def _wanted(self, tree: Part | None) -> list[Part]:
        """What a client on this machine would ask for: of an index, this platform's manifest."""
        if tree is None:
            return []
        if not tree.is_index:
            return list(tree.distinct().values())
        children = [
            part for part in tree.parts if part.platform is not None and part.platform.serves(self.platform)
        ] or [part for part in tree.parts if part.present]
        found = {tree.digest: tree}
        for child in children:
            found.update(child.distinct())
        return list(found.values())

    def _unfinished(self) -> dict[str, int]:
        return {each.path.name: each.disk_bytes for each in self.cache.store.leftovers()}

    def _blob(self, part: Part, unfinished: dict[str, int]) -> BlobFact:
        size = part.descriptor.size_bytes
        partly = min(size, unfinished.get(part.digest.encoded, 0))
        return BlobFact(
            digest=str(part.digest),
            media_type=part.descriptor.media_type,
            size_bytes=size,
            state="present" if part.present else "partial" if partly else "absent",
            present_bytes=size if part.present else partly,
            platform="" if part.platform is None else str(part.platform),
        )

    def _steering(self, site: Site, steered: Steered) -> Fact:
        detail = f"{site.authority} is steered" if steered.active else f"not steered: {steered.reason}"
        return Fact(about="steering", ok=steered.active, detail=detail)

    async def _readable(self, site: Site, name: ImageName) -> Fact:
        repository = name.repository.name
        seen = await self.cache.index.public_checked_at(site.namespace, repository)
        if seen is not None:
            lasts = "" if self.now() - seen < BELIEVED_FOR else "; it is asked anew at the next pull"
            detail = f"public, by its registry's word of {seen.isoformat(timespec='seconds')}{lasts}"
            return Fact(about="readers", ok=True, detail=detail)
        login = self.credentials.shared(site)
        if login is not None and await self.cache.index.public_checked_at(
            site.namespace, repository, login.key
        ):
            return Fact(
                about="readers", ok=True, detail=f"shared: this node's login {login.username} opens it"
            )
        detail = "private, or never asked: served to whom the registry accepts for it, never while it is dark"
        return Fact(about="readers", ok=False, detail=detail)

    def _tag(self, site: Site, name: ImageName, variant: TagVariant | None) -> Fact:
        if not isinstance(name.reference, Tag):
            return Fact(about="tag", ok=True, detail="asked for by digest, which never moves")
        if variant is None:
            return Fact(about="tag", ok=False, detail=f"{name.reference} is not known")
        age = timedelta(seconds=int((self.now() - variant.checked_at).total_seconds()))
        fresh_for = self.tiers.fresh_for(site.registry, name.repository.name, name.reference.name)
        believed = f"believed for {fresh_for}" if fresh_for else "asked for at each use"
        detail = f"{name.reference} is {variant.digest}, seen {age} ago; {believed}"
        return Fact(about="tag", ok=True, detail=detail)

    def _manifest(self, name: ImageName, digest: Digest | None, tree: Part | None, *, held: bool) -> Fact:
        if tree is None:
            return Fact(
                about="manifest", ok=False, detail="not cached" if digest is None else f"{digest}: absent"
            )
        if not held:
            detail = f"{name.repository} is not known to hold {digest}: its registry is asked first"
            return Fact(about="manifest", ok=False, detail=detail)
        return Fact(about="manifest", ok=True, detail=f"{digest}, {tree.descriptor.media_type}")

    def _upstream(self, site: Site, *, dark: bool) -> Fact:
        for member in self.upstreams.members:
            where = f"{member.kind} {member.url or site.authority}"
            if not member.failing and not member.dark(site):
                return Fact(about="upstream", ok=True, detail=f"{where} would be asked")
        failing = "; ".join(member.failing for member in self.upstreams.members if member.failing)
        said = f": {failing}" if failing else ""
        state = "does not answer" if dark else "failed lately"
        return Fact(about="upstream", ok=False, detail=f"{site.authority} {state}{said}")

    def _limits(self, site: Site) -> list[Fact]:
        if not self.cache.rate_limits.must_wait(site.registry, ""):
            return []
        return [Fact(about="rate limit", ok=False, detail=f"{site.registry} said 429: not asked for a while")]

    def _failed(self, parts: Sequence[Part]) -> list[Fact]:
        causes = [(part.digest, self.failures.of(part.digest)) for part in parts if not part.present]
        return [
            Fact(about="last error", ok=False, detail=f"{digest}: {cause}")
            for digest, cause in causes
            if cause
        ][:5]


def _content(tree: Part | None, blobs: Sequence[BlobFact], total: int) -> Fact:
    if tree is None:
        return Fact(about="content", ok=False, detail="not known, as the manifest is not here")
    present = sum(blob.state == "present" for blob in blobs)
    more = f", the first {len(blobs)} of {total} looked at" if total > len(blobs) else ""
    return Fact(
        about="content",
        ok=present == len(blobs),
        detail=f"{present} of {len(blobs)} blobs and manifests are here{more}",
    )
