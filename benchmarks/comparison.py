"""Figures of two contestants measured in turn, their medians, and the ratio against its target.

Only ratios of figures from one run on one machine mean anything: every value keeps the samples of each
round, so that a reader of the JSON sees how noisy the machine was. This module measures nothing.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on a ratio (or, without a peer, on the value itself): at least or at most."""

    bound: float
    kind: Literal["at least", "at most"]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.kind == "at least" else value <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: samples of each round, Tidegate's and the peer's (none: a value of its own)."""

    what: str
    unit: str
    tidegate: Sequence[float]
    peer: Sequence[float] = ()
    peer_name: str = ""
    target: Target | None = None
    note: str = ""

    @property
    def judged(self) -> float:
        """What the target is about: the ratio of the medians, or the median where there is no peer."""
        ours = median(self.tidegate)
        return ours / median(self.peer) if self.peer and median(self.peer) else ours

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "reported"
        return "met" if self.target.met(self.judged) else "unmet"

    def cells(self) -> tuple[str, ...]:
        target = f"{self.target.kind} {self.target.bound:g}" if self.target else "-"
        ratio = f"{self.judged:.2f}" if self.peer else "-"
        peer = f"{_number(median(self.peer))} ({self.peer_name})" if self.peer else "-"
        ours = f"{_number(median(self.tidegate))} {self.unit}"
        return self.what, ours, peer, ratio, target, self.verdict


@dataclass(slots=True, kw_only=True)
class Report:
    """The rows of one benchmark; printed as a table and written as JSON. Never fails on a slow machine."""

    benchmark: str
    rounds: int
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        """Print the table and write `results/<benchmark>.json`."""
        head = ("what", "tidegate", "peer", "ratio", "target", "")
        table = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(head))]
        for cells in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
        for row in self.rows:
            if row.note:
                print(f"  {row.what}: {row.note}")
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.benchmark}.json"
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        print(f"written: {path.relative_to(RESULTS.parent.parent)}")

    def as_json(self) -> dict[str, object]:
        rows = [asdict(row) | {"judged": round(row.judged, 4), "verdict": row.verdict} for row in self.rows]
        return {
            "benchmark": self.benchmark,
            "rounds": self.rounds,
            "machine": {"kernel": platform.release(), "python": sys.version.split()[0], "cpu": _cpu()},
            "rows": rows,
        }


def at_least(bound: float) -> Target:
    return Target(bound=bound, kind="at least")


def at_most(bound: float) -> Target:
    return Target(bound=bound, kind="at most")


def percentile(samples: Sequence[float], percent: float) -> float:
    """The sample below which `percent` of all lie (nearest rank)."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cpu() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else "unknown"
