"""Which site a request is for: its connection's name says so, or the request itself. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from multidict import CIMultiDict

from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.site import Site


@dataclass(frozen=True, slots=True)
class Addressed:
    """A site, and the target (path and query) that it is to be asked for."""

    site: Site
    target: str


class Addressing(Protocol):
    """How the requests of one connection are addressed."""

    @property
    def where(self) -> Hashable:
        """Equal where the same bytes mean the same request."""
        ...

    def of(self, host: str, target: str) -> Addressed | Answer:
        """What a Host field and a request target ask for, or the answer that refuses them."""
        ...


class BySite:
    """Every request is for the site that the connection is for; its Host field must agree (RFC 9110, 7.4)."""

    __slots__ = ("_site", "where")

    def __init__(self, site: Site) -> None:
        self._site = site
        # All that makes a site what it is, cheaper to compare than the site.
        self.where: Hashable = (site.registry, site.host, site.port, site.scheme)

    def of(self, host: str, target: str) -> Addressed | Answer:
        if self._site.is_named_by(host):
            return Addressed(self._site, target)
        return misdirected(self._site.host)


def misdirected(name: str) -> Answer:
    """421 (RFC 9110, 15.5.20): the connection is for another name."""
    return Answer(
        status=421,
        headers=CIMultiDict({"Content-Type": "text/plain; charset=utf-8"}),
        body=f"this connection is for {name}\n".encode(),
    )
