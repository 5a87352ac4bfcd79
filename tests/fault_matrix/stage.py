"""Plays cells of the matrix on one node of the lab, directly or through the agent.

Each cell pulls an image of its own, so that nothing is cached anywhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from lab import Image, Lab, Pull, Recipe, Registry
from lab.registry import User

from .row import Row

STORE = "/var/lib/tidegate/blobs/sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How one pull ended. `met`: the fault met a request; `stored`: the agent has the large layer."""

    pull: Pull
    well: bool
    met: bool
    stored: bool


class Stage:
    """A node with all the clients and their daemons; with `through`, steered by an agent that they trust."""

    def __init__(self, lab: Lab, *, through: bool = True) -> None:
        self._lab = lab
        self._node = lab.node
        self._numbers = itertools.count(1)
        self._image: tuple[str, Image] = ("", lab.images["docker.io/library/small:1"])
        if through:
            self._node.install_trust()
            self._node.start_agent().wait_steering()
        self._through = through
        self._node.start_dockerd()  # and containerd: both read the trust store once

    def play(self, row: Row, client: str) -> Seen:
        """One pull of something new while that goes wrong."""
        registry = self._registry(row)
        registry.heal()
        reference, image = self._publish(row, client)
        for fault in row.faults(image.largest_layer, image.sizes[image.largest_layer]):
            registry.fault(fault)
        registry.forget()
        pull = self._node.pull(client, reference, login=self._login(row), timeout_s=250)
        registry.heal()
        return Seen(
            pull=pull,
            well=pull.brought(image),
            met=any(request.faulty for request in registry.requests),
            stored=self._has(image.largest_layer),
        )

    def pulls_when_healed(self, row: Row, client: str) -> bool:
        """Whether the same pull ends well once nothing is wrong any more."""
        reference, image = self._image
        return self._node.pull(client, reference, login=self._login(row)).brought(image)

    def _publish(self, row: Row, client: str) -> tuple[str, Image]:
        number = next(self._numbers)
        way = "through" if self._through else "direct"
        recipe = Recipe(name=f"fault-{way}-{number}-{client}", layers=row.layers, with_busybox=False)
        repository, tag = "alice/private" if row.private else f"library/{recipe.name}", f"n{number}"
        image = self._registry(row).publish(recipe, repository, tag)
        self._image = (f"{row.registry}/{repository}:{tag}", image)
        return self._image

    def _login(self, row: Row) -> User | None:
        return self._lab.registry.users["alice"] if row.private else None

    def _registry(self, row: Row) -> Registry:
        return self._lab.registry if row.registry == "docker.io" else self._lab.quay

    def _has(self, digest: str) -> bool:
        encoded = digest.removeprefix("sha256:")
        return self._node.path(f"{STORE}/{encoded[:2]}/{encoded}").exists()
