"""Which repositories may be read by every client (I6): those of everyone, and those of a shared login.

A repository is public when its registry answers an anonymous HEAD of something in it; it is shared when the
registry answers one in the name of a login with `share = "node"`. Either is believed for an hour. While the
registry is dark the last verdict stands, because nobody can be asked.

What such a repository holds is asked for in the same name, whoever's login fetches it then: otherwise what
was pushed after it became private would be everyone's for the rest of the hour. What is neither is for
those who have a right of their own (`private`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.oci.request_path import Blob, ManifestByDigest, RequestRefused, parse_request
from tidegate_proxy.registry.membership import Membership, shown_by
from tidegate_proxy.single_flight import SingleFlight
from tidegate_proxy.site import Site
from tidegate_proxy.storage.index import Index
from tidegate_proxy.upstreams.anonymous import Anonymous
from tidegate_proxy.upstreams.credentials import Credentials
from tidegate_proxy.upstreams.signed_in import NotSignedIn, SignedIn
from tidegate_proxy.upstreams.upstream import FAILING, UpstreamBroken, UpstreamResponse, UpstreamUnreachable

BELIEVED_FOR = timedelta(hours=1)
REFUSAL_BELIEVED_FOR = timedelta(minutes=1)
_REFUSED = frozenset({401, 403})
_MAX_REFUSALS = 4096
_LOOKING = {"Accept": ", ".join((*MANIFEST_TYPES, "*/*")), "Accept-Encoding": "identity"}


class Right(StrEnum):
    """By what right every client may read a repository."""

    PUBLIC = "public"
    SHARED = "shared"


class Shown(StrEnum):
    """Whether a registry shows something in a repository."""

    YES = "yes"
    NO = "no"
    UNTOLD = "untold"
    """It gave no answer that tells."""


class Ask(Protocol):
    """Sends a HEAD in one name; raises UpstreamUnreachable, UpstreamBroken or NotSignedIn."""

    def __call__(
        self, site: Site, repository: Repository, target: str, *, follow_redirects: bool
    ) -> Awaitable[UpstreamResponse]: ...


class Verdicts:
    """Tells whether a repository can be read in one name, asking its registry at most once an hour, and what
    it holds.

    `login` says in whose name, in memory and index; empty for nobody's.
    """

    def __init__(
        self,
        *,
        ask: Ask,
        dark: Callable[[Site], bool],
        index: Index,
        membership: Membership,
        now: Callable[[], datetime],
        patience_s: float,
    ) -> None:
        self._ask_registry = ask
        self._membership = membership
        self._dark = dark
        self._index = index
        self._now = now
        self._patience_s = patience_s
        self._asking: SingleFlight[tuple[str, str, str], bool] = SingleFlight()
        self._looking: SingleFlight[tuple[str, str, str, str], Shown] = SingleFlight()
        self._refused_at: dict[tuple[str, str, str], datetime] = {}

    async def close(self) -> None:
        """End what runs."""
        await self._asking.close()
        await self._looking.close()

    def known(self, site: Site, repository: Repository, login: str = "") -> bool:
        """Whether it holds by what is in memory: False may also mean that somebody has to be asked."""
        known_at = self._index.remembered_public(site.namespace, repository.name, login)
        return known_at is not None and timedelta(0) <= self._now() - known_at < BELIEVED_FOR

    async def holds(self, site: Site, repository: Repository, target: str, login: str = "") -> bool:
        """Whether the repository can be read; `target` is the path of something that should be in it."""
        key = (site.namespace, repository.name, login)
        known_at = await self._index.public_checked_at(*key)
        now = self._now()
        if known_at is not None and timedelta(0) <= now - known_at < BELIEVED_FOR:
            return True
        if known_at is not None and self._dark(site):
            return True
        refused_at = self._refused_at.get(key)
        if refused_at is not None and timedelta(0) <= now - refused_at < REFUSAL_BELIEVED_FOR:
            return False
        try:
            return await self._asking.run(key, lambda: self._ask(key, site, repository, target))
        except (UpstreamUnreachable, UpstreamBroken):
            return known_at is not None

    async def believe(self, site: Site, repository: Repository, when: datetime) -> None:
        """Somebody who may says that everyone may read it, as if the registry had shown it then."""
        self._refused_at.pop((site.namespace, repository.name, ""), None)
        await self._index.mark_public(site.namespace, repository.name, when)

    async def _ask(self, key: tuple[str, str, str], site: Site, repository: Repository, target: str) -> bool:
        try:
            response = await self._head(site, repository, target, follow_redirects=False)
        except NotSignedIn as refusal:
            if refusal.passing:
                raise UpstreamBroken(str(refusal)) from refusal
            await self._index.mark_private(*key)  # not remembered as refused: a new password is tried at once
            return False
        await response.close()
        if response.status < 400:
            registry, name, login = key
            await self._index.mark_public(registry, name, self._now(), login)
            self._refused_at.pop(key, None)
            if (digest := shown_by(response, _digest_in(target))) is not None:
                await self._membership.learn(site, repository, digest)
            return True
        if response.status in _REFUSED:
            await self._refuse(key)
        if response.status in FAILING:
            raise UpstreamBroken(f"{site.authority} answers {response.status}")
        return False

    async def shows(self, site: Site, repository: Repository, target: str, login: str = "") -> Shown:
        """Whether the registry shows what the path `target` names by digest; if so, that is remembered.

        A manifest that is refused in this name makes the verdict fall. While the registry is dark nothing is
        shown.
        """
        if self._dark(site):
            return Shown.UNTOLD
        key = (site.namespace, repository.name, login, target)
        return await self._looking.run(key, lambda: self._look(site, repository, target, login))

    async def _look(self, site: Site, repository: Repository, target: str, login: str) -> Shown:
        digest, is_blob = _digest_in(target), "/blobs/" in target
        try:
            # Not with a login: what another host says about a HEAD would count as the registry's refusal.
            follows = is_blob and not login
            response = await self._head(site, repository, target, follow_redirects=follows)
        except NotSignedIn as refusal:
            return Shown.UNTOLD if refusal.passing else Shown.NO
        except (UpstreamUnreachable, UpstreamBroken):
            return Shown.UNTOLD
        await response.close()
        if response.status in FAILING:
            return Shown.UNTOLD
        if response.status in _REFUSED and not is_blob:  # of a blob it may be the word of another host
            await self._refuse((site.namespace, repository.name, login))
        if digest is None or shown_by(response, digest) is None:
            return Shown.NO
        await self._membership.learn(site, repository, digest)
        return Shown.YES

    async def _head(
        self, site: Site, repository: Repository, target: str, *, follow_redirects: bool
    ) -> UpstreamResponse:
        try:
            # Bounded here and not by the upstream: that refuses who has an alternative at once where no name
            # resolves, but who knows no verdict has none, and the resolver may be back already (I1).
            async with asyncio.timeout(self._patience_s):
                return await self._ask_registry(site, repository, target, follow_redirects=follow_redirects)
        except TimeoutError as error:
            raise UpstreamBroken(f"{site.authority} does not answer in time") from error

    async def _refuse(self, key: tuple[str, str, str]) -> None:
        await self._index.mark_private(*key)
        if len(self._refused_at) >= _MAX_REFUSALS:
            self._refused_at.pop(next(iter(self._refused_at)))
        self._refused_at[key] = self._now()


def _digest_in(target: str) -> Digest | None:
    """The digest that a path names, if it names one."""
    try:
        request = parse_request("HEAD", *target.partition("?")[::2])
    except RequestRefused:
        return None
    return request.digest if isinstance(request, ManifestByDigest | Blob) else None


class Readable:
    """Tells which repositories every client may read, and by what right."""

    def __init__(
        self,
        *,
        anonymous: Anonymous,
        signed_in: SignedIn,
        credentials: Credentials,
        index: Index,
        membership: Membership,
        now: Callable[[], datetime],
        patience_s: float,
    ) -> None:
        self._credentials = credentials
        self._index = index
        self._now = now

        async def ask_as_nobody(
            site: Site, repository: Repository, target: str, *, follow_redirects: bool
        ) -> UpstreamResponse:
            return await anonymous.request(
                site, repository, "HEAD", target, _LOOKING, follow_redirects=follow_redirects
            )

        async def ask_signed_in(
            site: Site, repository: Repository, target: str, *, follow_redirects: bool
        ) -> UpstreamResponse:
            credential = credentials.shared(site)
            if credential is None:
                raise NotSignedIn("no login is shared")
            return await signed_in.request(
                credential, site, repository, "HEAD", target, _LOOKING, follow_redirects=follow_redirects
            )

        def verdicts(ask: Ask, dark: Callable[[Site], bool]) -> Verdicts:
            return Verdicts(
                ask=ask, dark=dark, index=index, membership=membership, now=now, patience_s=patience_s
            )

        self._public = verdicts(ask_as_nobody, anonymous.dark)
        self._shared = verdicts(ask_signed_in, signed_in.dark)

    async def close(self) -> None:
        """End what runs."""
        await self._public.close()
        await self._shared.close()

    def known(self, site: Site, repository: Repository) -> bool:
        """Whether every client may read it, by what is in memory; if not, somebody may have to be asked."""
        if self._public.known(site, repository):
            return True
        credential = self._credentials.shared(site)
        return credential is not None and self._shared.known(site, repository, credential.key)

    async def by_everyone(self, site: Site, repository: Repository, target: str) -> Right | None:
        """By what right every client may read it, if any; `target` is a path of something in it."""
        if self._public.known(site, repository):
            return Right.PUBLIC
        credential = self._credentials.shared(site)
        if credential is not None and self._shared.known(site, repository, credential.key):
            return Right.SHARED
        if await self._public.holds(site, repository, target):
            return Right.PUBLIC
        # Again: only now the registry may have said which token service is its own.
        credential = self._credentials.shared(site)
        if credential is not None and await self._shared.holds(site, repository, target, credential.key):
            return Right.SHARED
        return None

    async def last(self, site: Site, repository: Repository) -> Right | None:
        """By what right every client could read it when that was last asked. Nobody is asked now."""
        key = (site.namespace, repository.name)
        if await self._index.public_checked_at(*key) is not None:
            return Right.PUBLIC
        credential = self._credentials.shared(site)
        if credential is not None and await self._index.public_checked_at(*key, credential.key) is not None:
            return Right.SHARED
        return None

    async def believe(self, site: Site, repository: Repository) -> None:
        """The operator says that everyone may: that stands while the registry is dark, until it refuses.

        When it answers, it is asked before anybody is served.
        """
        if await self._index.public_checked_at(site.namespace, repository.name) is None:
            await self._public.believe(site, repository, self._now() - BELIEVED_FOR)

    async def shows(self, site: Site, repository: Repository, target: str, right: Right) -> Shown:
        """Whether the registry shows what `target` names by digest to everyone who reads by that right."""
        if right is Right.PUBLIC:
            return await self._public.shows(site, repository, target)
        credential = self._credentials.shared(site)
        if credential is None:
            return Shown.NO
        return await self._shared.shows(site, repository, target, credential.key)
