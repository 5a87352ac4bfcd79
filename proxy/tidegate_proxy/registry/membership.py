"""What a repository is known to hold: only that may be served from the store under its name (DESIGN, 6; I6).

The store has each content once, whoever it came for; so that it is there tells nothing about a repository.
A repository holds what its registry showed under its name, by digest or by a tag, to whoever asked; and
what a manifest that it showed there is made of (`held_parts`). Who may read the repository is another
question.

Hosts are kept apart even where one registry has several (`*.pkg.dev`): a mirror is told them apart, too.
"""

from collections.abc import Iterable
from contextlib import suppress

from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.held_parts import held_parts
from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.site import Site
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.remembered import Remembered
from tidegate_proxy.upstreams.upstream import UpstreamResponse

_EXPANDED = 16_384


class Membership:
    """Tells what repositories hold, and learns it from what their registries showed."""

    def __init__(self, index: Index) -> None:
        self._members = index.members
        self._expanded: Remembered[tuple[str, str, str], int] = Remembered(_EXPANDED)

    async def holds(self, site: Site, repository: Repository, digest: Digest) -> bool:
        """Whether the repository is known to hold it. Nobody is asked."""
        return await self._members.holds(site.namespace, repository.name, digest)

    async def learn(self, site: Site, repository: Repository, *digests: Digest) -> None:
        """The registry showed these in the repository."""
        await self._members.learn(site.namespace, repository.name, digests)

    async def forget(self, site: Site, repository: Repository, digest: Digest) -> None:
        """It was deleted there."""
        await self._members.forget([digest], (site.namespace, repository.name))

    async def served(self, site: Site, repository: Repository, answer: Answer) -> None:
        """A manifest was served under the repository: if that holds it, it holds what it is made of."""
        if answer.status != 200 or not isinstance(answer.body, bytes) or not answer.body:
            return
        digest = claimed_digest(answer.headers.getall("Docker-Content-Digest", []))
        if digest is None:
            return
        key = (site.namespace, repository.name, digest.encoded)
        forgotten = self._members.forgotten
        if self._expanded.get(key) == forgotten or not await self.holds(site, repository, digest):
            return
        await self.learn(site, repository, *held_parts(answer.body, answer.headers.get("Content-Type", "")))
        self._expanded.put(key, forgotten)


def shown_by(response: UpstreamResponse, asked: Digest | None) -> Digest | None:
    """The digest that an answer shows to be held: of a 200, the one that was asked for, or claimed."""
    if response.status != 200:
        return None
    claims = response.headers.getall("Docker-Content-Digest", [])
    claimed = claimed_digest(claims)
    if asked is None:
        return claimed
    return asked if not claims or claimed == asked else None


def claimed_digest(claims: Iterable[str]) -> Digest | None:
    """The digest in Docker-Content-Digest, if there is one and it is well-formed."""
    match list(claims):
        case [claim]:
            with suppress(InvalidDigest):
                return Digest.parse(claim)
    return None
