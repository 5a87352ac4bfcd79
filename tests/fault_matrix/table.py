"""The matrix as a table for people and as Markdown for the documentation."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

from rich.table import Table

from .row import CLIENTS, Row
from .stage import Seen

MEASURED = "Measured on "
"""Begins the line from which on a document is written anew; what stands above it is written by people."""

Cells = Mapping[tuple[str, str], tuple[Seen, Seen]]
"""By the row's name and the client: directly, and through the agent."""


def head() -> tuple[str, ...]:
    return ("fault", *CLIENTS, "")


def lines(rows: Sequence[Row], cells: Cells) -> list[tuple[str, ...]]:
    """A line a row: how the pull ended for each client, directly and through the agent."""
    return [
        (row.name, *(_told(cells.get((row.name, client))) for client in CLIENTS), row.hopeless)
        for row in rows
        if any((row.name, client) in cells for client in CLIENTS)
    ]


def for_people(rows: Sequence[Row], cells: Cells) -> Table:
    table = Table(*head())
    for line in lines(rows, cells):
        table.add_row(*line)
    return table


def markdown(rows: Sequence[Row], cells: Cells, *, before: str = "") -> str:
    """The document: what people wrote in the one that was there before, and the table."""
    text, _, _ = before.partition(f"\n{MEASURED}")
    told = [f"| {' | '.join(line)} |" for line in (head(), *lines(rows, cells))]
    told.insert(1, "|---" * len(head()) + "|")
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores, {len(cells)} cells"
    return f"{text or '# Faults of registries'}\n{MEASURED}{machine}.\n\n" + "\n".join(told) + "\n"


def _told(seen: tuple[Seen, Seen] | None) -> str:
    if seen is None:
        return ""
    return ", ".join(_ended(each) for each in seen)


def _ended(seen: Seen) -> str:
    return f"{'well' if seen.well else '**fails**'} {seen.pull.duration_s:.1f} s"
