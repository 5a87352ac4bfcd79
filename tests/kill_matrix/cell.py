"""The matrix as values: moments, deaths, who is in flight, and what one cell showed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Moment = Literal["DNS query", "TLS handshake", "cold layer", "warm layer", "push", "splice"]
Death = Literal["SIGKILL", "SIGSTOP", "SIGTERM", "supervisor killed", "both killed"]

LEASE_S = 3.0
BOUND_S = LEASE_S + 1
"""No connection may hang longer than this, and no new one may still be steered."""

ASKS_AGAIN_S = 5.0
"""When Go's and glibc's resolvers ask again after a query that nobody answered (resolv.conf(5), timeout)."""

DEATHS: tuple[Death, ...] = ("SIGKILL", "SIGSTOP", "SIGTERM", "supervisor killed", "both killed")
GRACEFUL: tuple[Death, ...] = ("SIGTERM", "supervisor killed")
"""The agent withdraws and ends in order: what is in flight may go on."""

RAW = "raw"
PULLERS = ("skopeo", "podman", "ctr", "cri", "dockerd")
PUSHERS = ("skopeo", "podman", "ctr", "dockerd")  # CRI has no push
CLIENTS: dict[Moment, tuple[str, ...]] = {
    "DNS query": (RAW,),
    "TLS handshake": (RAW,),
    "cold layer": PULLERS,
    "warm layer": PULLERS,
    "push": PUSHERS,
    "splice": (RAW,),
}
MOMENTS: tuple[Moment, ...] = tuple(CLIENTS)


BACKENDS = ("nft", "ebpf", "nft-lease", "iptables")
BY_LEASE = ("nft-lease", "iptables")
"""The kernel does not take these away with their process: what the supervisor cannot end, the lease does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Who is in the middle of what when the agent dies how, and what steers."""

    client: str
    moment: Moment
    death: Death
    backend: str = "nft"

    @property
    def may_refuse(self) -> bool:
        """For a moment, or up to the lease where nobody is left, rules lead to a port that is closed."""
        return self.backend in BY_LEASE and self.death in ("SIGKILL", "both killed")

    @property
    def may_take_s(self) -> float:
        """How long a client may take to fail: with nobody left, look-ups within the lease are lost."""
        nobody_is_left = self.backend in BY_LEASE and self.death == "both killed"
        return BOUND_S + ASKS_AGAIN_S if nobody_is_left else BOUND_S

    def __str__(self) -> str:
        return f"{self.client}, {self.moment}, {self.death}, {self.backend}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one cell showed; times are seconds since the death."""

    cell: Cell
    direct_s: float | None  # the first new connection that reached the registry itself; None: none did
    refused: int  # new connections that failed
    held: int  # connections that the client had through the agent
    let_go_s: float | None  # when the last of them ended; None: it goes on
    well: bool  # what was in flight ended well
    how: str
    ended_s: float
    retry_well: bool
    retry_s: float
    left: tuple[str, ...]  # what was not there before the agent started

    def complaints(self) -> list[str]:
        """What the design does not allow (DESIGN 3, I1 and I4)."""
        found = []
        if self.direct_s is None or self.direct_s > BOUND_S:
            found.append(f"new connections did not go direct within {BOUND_S:g} s")
        if self.refused and not self.cell.may_refuse:
            found.append(f"{self.refused} new connections were refused")
        if self.cell.death in GRACEFUL:
            if not self.well:
                found.append(f"what was in flight should have ended well: {self.how}")
        elif self.let_go_s is None or self.let_go_s > BOUND_S:
            found.append(f"a connection in flight hung longer than {BOUND_S:g} s")
        elif not self.well and self.ended_s > self.cell.may_take_s:
            found.append(f"the client took longer than {self.cell.may_take_s:g} s to fail")
        if self.cell.moment == "DNS query" and self.ended_s > BOUND_S:
            found.append(f"the query hung longer than {BOUND_S:g} s")
        if not self.retry_well:
            found.append("the retry failed")
        if self.left:
            found.append(f"left behind: {'; '.join(self.left)}")
        return found


def all_cells(backend: str = "nft") -> Iterator[Cell]:
    """The whole matrix, client by client: a daemon then starts once."""
    for client in (RAW, *PULLERS):
        for moment in MOMENTS:
            if client in CLIENTS[moment]:
                for death in DEATHS:
                    yield Cell(client=client, moment=moment, death=death, backend=backend)


def few_cells(backend: str) -> list[Cell]:
    """One connection, and the deaths that differ most from back end to back end."""
    return [
        Cell(client=RAW, moment="TLS handshake", death=death, backend=backend)
        for death in ("SIGKILL", "SIGSTOP", "both killed")
    ]


def some_cells(backend: str = "nft") -> list[Cell]:
    """Every moment with every death once, the clients taking turns."""
    chosen = []
    for row, moment in enumerate(MOMENTS):
        clients = CLIENTS[moment]
        for column, death in enumerate(DEATHS):
            client = clients[(row + column) % len(clients)]
            chosen.append(Cell(client=client, moment=moment, death=death, backend=backend))
    return sorted(chosen, key=lambda cell: cell.client)
