"""Editions of the authority's certificate, and the hosts that each of them vouches for; pure.

When the hosts change, the certificate is reissued with its key, and for a while nobody can tell which edition
the trust store of the next client holds. What every edition covers that it may hold works with all of them;
the rest has to wait (I3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from tidegate_proxy.interception.authority import permitted_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """A certificate (PEM) and the DNS names that it permits, with all that is below them."""

    certificate_pem: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, certificate_pem: bytes, patterns: Sequence[str]) -> Self:
        return cls(certificate_pem=certificate_pem, names=permitted_names(patterns))

    def covers(self, pattern: str) -> bool:
        """Whether every host that the pattern stands for is among them."""
        host = pattern.removeprefix("*.")
        return any(host == name or host.endswith("." + name) for name in self.names)


@dataclass(frozen=True, slots=True)
class Editions:
    """Those that the trust store may hold, the newest first."""

    all: tuple[Edition, ...]

    @property
    def certificates(self) -> tuple[bytes, ...]:
        return tuple(edition.certificate_pem for edition in self.all)

    def reissued(self, edition: Edition) -> "Editions":
        """The same, and a newer one."""
        return self if edition.certificate_pem == self.certificates[0] else Editions((edition, *self.all))

    def installed(self, certificate_pem: bytes) -> "Editions":
        """The store holds this one: whatever is older is gone."""
        if certificate_pem not in self.certificates:
            return self
        return Editions(self.all[: self.certificates.index(certificate_pem) + 1])

    def waiting(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """The patterns that one of them does not cover."""
        return tuple(each for each in patterns if not all(edition.covers(each) for edition in self.all))
