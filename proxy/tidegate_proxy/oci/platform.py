"""Platforms, and the manifests of an index by theirs: OCI image-spec, image-index.md.

`linux/amd64`, `linux/arm/v7`, as containerd writes them. Pure: whoever asks says which machine it is.
"""

from dataclasses import dataclass
from typing import Self

import msgspec

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.descriptor import MalformedManifest, referenced_by
from tidegate_proxy.oci.digest import Digest, InvalidDigest

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


class InvalidPlatform(TidegateError):
    """The text names no platform."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture; `variant` may be empty."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`os/architecture[/variant]`; raises InvalidPlatform."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(part.isascii() and part.isalnum() for part in parts):
            raise InvalidPlatform(
                f"{text!r} is no platform", next_step="write os/architecture, such as linux/arm64"
            )
        return cls(*parts)

    @classmethod
    def of_machine(cls, machine: str) -> Self:
        """That of a Linux machine by its `uname -m`."""
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    def serves(self, wanted: "Platform") -> bool:
        """Whether this is the platform that is wanted: a variant that one does not tell is the usual one."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return False
        usual = _DEFAULT_VARIANTS.get(self.architecture, "")
        return (self.variant or usual) == (wanted.variant or usual)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Child(msgspec.Struct):
    digest: str
    platform: _Platform | None = None


class _Index(msgspec.Struct):
    manifests: list[_Child]


def platforms_of(index: bytes, media_type: str) -> dict[Digest, Platform | None]:
    """The manifests of an index in their order, each with its platform if it tells one.

    Empty for a manifest that is none. Raise MalformedManifest.
    """
    known = {part.digest for part in referenced_by(index, media_type)}
    try:
        children = msgspec.json.decode(index, type=_Index).manifests
    except msgspec.ValidationError:
        return {}
    except msgspec.DecodeError as error:
        raise MalformedManifest(f"the index does not read: {error}") from error
    found: dict[Digest, Platform | None] = {}
    for child in children:
        try:
            digest = Digest.parse(child.digest)
        except InvalidDigest:
            continue
        if digest in known and digest not in found:
            told = child.platform
            found[digest] = None if told is None else Platform(told.os, told.architecture, told.variant)
    return found
