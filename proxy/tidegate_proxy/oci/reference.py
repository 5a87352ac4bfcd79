"""Repositories, tags and references: OCI distribution-spec, "Pulling manifests".

Names are checked against the grammar as they stand. Nothing is decoded, lower-cased, trimmed or
completed (`alpine` does not become `library/alpine`): what a registry would read differently from
us must not get past here.
"""

import re
from dataclasses import dataclass
from typing import Self

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.digest import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
# The specification names 255 as what many clients allow host and repository together; registries
# apply it to the name alone.
_REPOSITORY_MAX_LENGTH = 255
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


class InvalidRepository(TidegateError):
    """The text is not a repository name: NAME_INVALID on the wire."""


class InvalidTag(TidegateError):
    """The text is not a tag: MANIFEST_INVALID on the wire."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository name without its registry; `str` gives `library/alpine`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise InvalidRepository for anything outside the grammar or longer than 255 characters."""
        if len(text) > _REPOSITORY_MAX_LENGTH:
            raise InvalidRepository(f"a repository name has at most {_REPOSITORY_MAX_LENGTH} characters")
        if not _REPOSITORY.fullmatch(text):
            raise InvalidRepository(
                "a repository name is lower-case letters and digits, with single separators, between slashes"
            )
        return cls(text)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Tag:
    """A movable name of a manifest; `str` gives `1.27-alpine`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise InvalidTag for anything outside the grammar, which allows 128 characters."""
        if not _TAG.fullmatch(text):
            raise InvalidTag(
                "a tag is at most 128 letters, digits, '_', '.' and '-', and starts with none of '.-'"
            )
        return cls(text)

    def __str__(self) -> str:
        return self.name


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """What follows `/manifests/`: a digest if it has a colon, which no tag has. Raise as the two do."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)
