"""Plays cells of the matrix on one node of the lab: an agent each, a death, and what there was to see.

A node serves one client, so that a daemon starts once; each cell gets an agent with an empty cache.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from lab import Agent, Fault, Image, Lab, Node, Recipe, until
from lab.footprint import Footprint

from .cell import BY_LEASE, LEASE_S, RAW, Cell, Death, Seen
from .in_flight import (
    NEIGHBOUR,
    REGISTRY_HOST,
    InFlight,
    PullInFlight,
    PushInFlight,
    RawInFlight,
    start_neighbour,
)

REAPER = Path(__file__).with_name("reaper.py")
COLD = Recipe(name="matrix-cold", layers=(40 << 20, 1000), with_busybox=False)
WARM = Recipe(name="matrix-warm", layers=(100 << 20, 1000), with_busybox=False)
ORIGIN_BYTES_PER_S = 20_000_000
MIDDLE_BYTES = 8_000_000
KNOCK_S: dict[Death, float] = {
    "SIGKILL": 0.5,
    "SIGSTOP": LEASE_S + 1.2,
    "SIGTERM": 2.0,  # the agent withdraws by itself, when it gets a turn
    "supervisor killed": 2.0,
    "both killed": 0.5,
}
KNOCK_FROM = range(10_000, 30_000)  # outside net.ipv4.ip_local_port_range
# Empty tables of the host's own, which stay when iptables has once been used.
HOSTS_OWN_TABLES = (
    "for x in iptables ip6tables; do for t in nat raw; do"
    " $x -t $t -A OUTPUT -j RETURN; $x -t $t -F OUTPUT; done; done"
)
# The journal too: a request that was met by two deaths is passed through, and the matrix has more of them.
FORGET_THE_CELL_BEFORE = (
    "rm -rf /var/lib/tidegate/blobs /var/lib/tidegate/partial /var/lib/tidegate/index.sqlite*"
    " /run/tidegate/in-flight /run/tidegate/deaths.json"
)


def play(lab: Lab, cells: Iterable[Cell]) -> Iterator[Seen]:
    """Each cell in turn; those of one client should follow each other."""
    client = ""
    stage: Stage | None = None
    for cell in cells:
        if stage is None or cell.client != client:
            client = cell.client
            stage = Stage(lab, client)
        yield stage.play(cell)


class Stage:
    """A node with one client, its daemon if it has one, and an agent at a time."""

    def __init__(self, lab: Lab, client: str) -> None:
        lab.reset()
        self._lab = lab
        self._node: Node = lab.node
        self._registry = lab.registry
        self._images = {
            "cold layer": ("docker.io/library/matrix-cold:1", COLD),
            "warm layer": ("docker.io/library/matrix-warm:1", WARM),
        }
        self._node.install_trust()
        if client == RAW:
            start_neighbour(lab)
        else:
            self._node.start_daemon_of(client)
        self._address = str(self._registry.addresses[REGISTRY_HOST][0])
        self._knock_from = KNOCK_FROM.start

    def play(self, cell: Cell) -> Seen:
        node, registry = self._node, self._registry
        registry.heal()
        node.run(["sh", "-c", FORGET_THE_CELL_BEFORE]).or_raise()
        if cell.backend == "iptables":
            node.run(["sh", "-c", HOSTS_OWN_TABLES]).or_raise()
        before = Footprint.of(node)
        agent = node.start_agent(f'[steering]\nbackend = "{cell.backend}"\n').wait_steering()
        in_flight, arguments = self._begin(cell, agent)
        registry.forget()
        reaped = self._reap(arguments)
        end = in_flight.end(60)
        self._knock_from = _after(reaped["knocks"], self._knock_from)
        direct_s, refused = self._first_direct(reaped["knocks"])
        registry.heal()
        retried = time.monotonic()
        retry_well = in_flight.again()
        retry_s = time.monotonic() - retried
        self._stop(agent, cell.death)
        if cell.death == "both killed" and cell.backend in BY_LEASE:
            # As systemd does it, or the next start: nobody else is there to.
            node.run([sys.executable, "-m", "tidegate_agent.leftovers"]).or_raise()
        return Seen(
            cell=cell,
            direct_s=direct_s,
            refused=refused,
            held=reaped["held"],
            let_go_s=_last(reaped["gone"], reaped["held"]),
            well=end.well,
            how=end.how,
            ended_s=end.at - reaped["killed"],
            retry_well=retry_well,
            retry_s=retry_s,
            left=self._left(before),
        )

    def _begin(self, cell: Cell, agent: Agent) -> tuple[InFlight, dict[str, object]]:
        """Start what is to be in flight; what the reaper waits for, kills and watches."""
        kills = _kills(cell.death, agent)
        arguments: dict[str, object] = {
            "bytes": 0,
            "direction": "acked",
            "within_s": 20,
            "kill": kills,
            "address": self._address,
            "knock_from": self._knock_from,
            "knock_s": _knock_s(cell),
            "watch_s": 8.0,
        }
        node = self._node
        match cell.moment:
            case "DNS query":
                self._freeze_the_resolver(signal.SIGSTOP)
                return RawInFlight(node, "dns", NEIGHBOUR), arguments  # steered, and not resolved ahead
            case "TLS handshake":
                return RawInFlight(node, "handshake", REGISTRY_HOST), arguments
            case "splice":
                watch_s = LEASE_S + 1.5 if cell.death == "SIGSTOP" else 1.5
                in_flight = RawInFlight(node, "splice", NEIGHBOUR, listen_s=watch_s + 1)
                return in_flight, arguments | {"watch_s": watch_s}
            case "push":
                pushing = PushInFlight(node, cell.client, self._registry)
                return pushing, arguments | {"bytes": MIDDLE_BYTES, "direction": "received"}
            case "cold layer" | "warm layer":
                reference, image = self._image(cell.moment)
                if cell.moment == "warm layer":
                    node.pull("skopeo", reference)
                self._registry.fault(Fault(on="bytes", bytes_per_s=ORIGIN_BYTES_PER_S, times=None))
                pulling = PullInFlight(node, cell.client, reference, image)
                return pulling, arguments | {"bytes": MIDDLE_BYTES}

    def _reap(self, arguments: dict[str, object]) -> dict[str, Any]:
        """Let the reaper do its work; the resolver, if it was frozen, goes on right after the death."""
        with self._node.spawn([sys.executable, "-P", str(REAPER), json.dumps(arguments)]) as reaper:
            until(lambda: '"killed"' in reaper.log or not reaper.running, "the death", within_s=30)
            self._freeze_the_resolver(signal.SIGCONT)
            if reaper.wait(30) != 0:
                raise RuntimeError(f"the reaper: {reaper.log}")
            killed, rest = reaper.log.splitlines()
            reaped: dict[str, Any] = json.loads(killed) | json.loads(rest)  # Any: JSON objects
            return reaped

    def _image(self, moment: str) -> tuple[str, Image]:
        reference, recipe = self._images[moment]
        return reference, self._registry.publish(recipe, f"library/{recipe.name}")

    def _freeze_the_resolver(self, number: signal.Signals) -> None:
        """Queries wait in its socket until it goes on: the agent has forwarded and has no answer."""
        host = self._lab.resolver.host
        for pid, line in host.processes().items():
            if line.startswith("dnsmasq"):
                host.run(["kill", f"-{number:d}", str(pid)]).or_raise()

    def _first_direct(self, knocks: list[tuple[float, int | None]]) -> tuple[float | None, int]:
        """When connections began to reach the registry from the client's own port, and how many failed."""
        ports = [port for _, port in knocks if port is not None]

        def seen() -> set[int]:
            return {connection.peer[1] for connection in self._registry.connections}

        direct = seen()
        if ports:  # the log follows the handshake at once
            until(lambda: seen() == seen(), "a quiet log")
            direct = seen()
        first = next((begun for begun, port in knocks if port in direct), None)
        return first, sum(port is None for _, port in knocks)

    def _stop(self, agent: Agent, death: Death) -> None:
        if death == "both killed":
            return
        if death == "SIGTERM":
            agent.supervisor.wait(40)
        elif death == "supervisor killed":
            until(lambda: not _agents(self._node), "the agent ends by itself", within_s=40)
        else:
            agent.stop()

    def _left(self, before: Footprint) -> tuple[str, ...]:
        """What is there that was not before, and stays."""

        def leftovers() -> tuple[str, ...]:
            after = Footprint.of(self._node)
            return tuple(
                f"{field.name}: {getattr(after, field.name)}"
                for field in fields(Footprint)
                if getattr(after, field.name) != getattr(before, field.name)
            )

        try:
            until(lambda: not leftovers(), "nothing is left", within_s=5, every_s=0.1)
        except TimeoutError:
            return leftovers()
        return ()


def _knock_s(cell: Cell) -> float:
    """How long new connections are tried; where the lease alone ends steering, beyond it."""
    by_lease = cell.death in ("SIGKILL", "both killed") and cell.backend in BY_LEASE
    return LEASE_S + 1.2 if by_lease else KNOCK_S[cell.death]


def _kills(death: Death, agent: Agent) -> list[tuple[int, int]]:
    pid, supervisor = agent.pid, agent.supervisor_pid
    kills: dict[Death, list[tuple[int, int]]] = {
        "SIGKILL": [(pid, signal.SIGKILL)],
        "SIGSTOP": [(pid, signal.SIGSTOP)],
        "SIGTERM": [(supervisor, signal.SIGTERM)],
        "supervisor killed": [(supervisor, signal.SIGKILL)],
        "both killed": [(supervisor, signal.SIGKILL), (pid, signal.SIGKILL)],
    }
    return kills[death]


def _agents(node: Node) -> list[int]:
    return [pid for pid, line in node.processes().items() if "tidegate agent" in line]


def _after(knocks: list[tuple[float, int | None]], used_from: int) -> int:
    """Where the next cell's ports begin."""
    last = max((port for _, port in knocks if port is not None), default=used_from)
    return last + 1 if last + 2000 < KNOCK_FROM.stop else KNOCK_FROM.start


def _last(gone: list[float], held: int) -> float | None:
    """When the last of the connections ended; None when one goes on."""
    return None if len(gone) < held else max(gone, default=0.0)
