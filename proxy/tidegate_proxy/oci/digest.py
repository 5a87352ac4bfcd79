"""Content digests: OCI image-spec, descriptor.md, "Digests".

A `Digest` here is one that can be verified: sha256 or sha512 with lower-case hex of the exact
length. The grammar knows more algorithms than anyone can check, so text that is well-formed under
an algorithm unknown here raises `UnverifiableDigest` instead: such content may pass through, but
nothing may be stored or served under a name that was never checked.

This module does not read files and does not compare what was fetched: see the store for that.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from tidegate_core.errors import TidegateError


class Hasher(Protocol):
    """hashlib's hash objects, whose own type has no public name."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


_ALGORITHMS: dict[str, tuple[int, Callable[[bytes], Hasher]]] = {
    "sha256": (64, hashlib.sha256),
    "sha512": (128, hashlib.sha512),
}
ALGORITHMS = tuple(_ALGORITHMS)
_GRAMMAR = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")
_HEX = re.compile(r"[0-9a-f]+")
# The specification sets no limit; sha512 takes 135 characters, and no known algorithm needs more.
_MAX_LENGTH = 255


class InvalidDigest(TidegateError):
    """The text is not a digest that can be used here: DIGEST_INVALID on the wire."""


class UnverifiableDigest(InvalidDigest):
    """The text is a digest under an algorithm that is not known here: pass it through, uncached."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of content by its hash; `str` gives `sha256:<hex>`."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise InvalidDigest, or UnverifiableDigest for a well-formed one of another algorithm."""
        match = _GRAMMAR.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        if match is None:
            raise InvalidDigest("the digest is not of the form <algorithm>:<encoded>")
        algorithm, encoded = match.groups()
        if algorithm not in _ALGORITHMS:
            raise UnverifiableDigest(f"the digest algorithm {algorithm} is not known here")
        length, _ = _ALGORITHMS[algorithm]
        if len(encoded) != length or not _HEX.fullmatch(encoded):
            raise InvalidDigest(f"a {algorithm} digest has {length} lower-case hexadecimal digits")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hashlib object; content is verified when its `hexdigest()` equals `encoded`."""
        _, new = _ALGORITHMS[self.algorithm]
        return new(b"")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"
