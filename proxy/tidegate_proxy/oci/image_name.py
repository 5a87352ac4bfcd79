"""Images as people write them: `nginx`, `library/nginx:1.27`, `registry.local:5000/x@sha256:...`.

The rules are those of docker and containers/image (distribution/reference, "Familiar names"): the first
component is a registry when it has a dot or a colon or is `localhost`, otherwise the registry is Docker Hub,
where one component means `library/`. On the wire nothing is completed: see `reference`. Pure.
"""

import re
from dataclasses import dataclass, replace
from typing import Self

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.reference import InvalidRepository, InvalidTag, Repository, Tag

DOCKER_HUB = "docker.io"
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?")
LATEST = Tag("latest")

_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


class InvalidImageName(TidegateError):
    """The text names no image."""


@dataclass(frozen=True, slots=True)
class ImageName:
    """`registry` as a mirror would be told it (`docker.io`, `registry.local:5000`).

    Without `reference` the whole repository is meant; `str` parses back.
    """

    registry: str
    repository: Repository
    reference: Tag | Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise InvalidImageName, saying what is wrong and what to type."""
        try:
            return cls._parse(text.strip())
        except (InvalidRepository, InvalidTag, InvalidDigest) as error:
            raise InvalidImageName(
                f"{text!r} names no image: {error.cause}",
                next_step="write it as docker does: nginx:1.27, quay.io/team/tool@sha256:...",
            ) from error

    @classmethod
    def _parse(cls, text: str) -> Self:
        rest, at, digest = text.partition("@")
        registry, slash, path = rest.partition("/")
        if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
            registry, path = DOCKER_HUB, rest
        registry = registry.lower()
        if not _HOST.fullmatch(registry):
            raise InvalidRepository(f"{registry[:200]!r} is no host of a registry")
        name, colon, tag = path.rpartition(":")
        name = name if colon else path
        if registry in _HUB_HOSTS:
            registry = DOCKER_HUB
            name = name if "/" in name or not name else f"library/{name}"
        reference: Tag | Digest | None = Tag.parse(tag) if colon else None
        if at:
            reference = Digest.parse(digest)  # a tag beside it says nothing more
        return cls(registry, Repository.parse(name), reference)

    @property
    def or_latest(self) -> "ImageName":
        """The same, and `latest` where it names neither tag nor digest: what a client would pull."""
        return self if self.reference is not None else replace(self, reference=LATEST)

    def __str__(self) -> str:
        separator = "@" if isinstance(self.reference, Digest) else ":"
        end = "" if self.reference is None else f"{separator}{self.reference}"
        return f"{self.registry}/{self.repository}{end}"
