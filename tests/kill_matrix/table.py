"""The matrix as a table for people, as Markdown for the documentation, and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from .cell import DEATHS, MOMENTS, Seen

HEAD = (
    "death",
    "moment",
    "client",
    "direct after",
    "connection let go",
    "what was in flight",
    "retry",
    "left",
)

MEASURED = "Measured on "
"""Begins the line from which on a document is written anew; what stands above it is written by people."""


def rows(matrix: Sequence[Seen]) -> list[tuple[str, ...]]:
    """The cells of the table, by death and moment."""
    order = {name: number for number, name in enumerate((*DEATHS, *MOMENTS))}
    ordered = sorted(matrix, key=lambda seen: (order[seen.cell.death], order[seen.cell.moment]))
    return [
        (
            seen.cell.death,
            seen.cell.moment,
            seen.cell.client,
            _time(seen.direct_s),
            _let_go(seen),
            f"{'ended well' if seen.well else 'failed'} after {_time(seen.ended_s)}",
            f"{'well' if seen.retry_well else 'FAILED'}, {_time(seen.retry_s)}",
            "nothing" if not seen.left else f"{len(seen.left)} kinds",
        )
        for seen in ordered
    ]


def for_people(matrix: Sequence[Seen]) -> Table:
    table = Table(*HEAD)
    for row, seen in zip(rows(matrix), rows(matrix), strict=True):
        table.add_row(*row, style="red" if "FAILED" in seen[6] else None)
    return table


def markdown(matrix: Sequence[Seen], *, before: str = "") -> str:
    """The document: what people wrote in the one that was there before, and the table."""
    text, _, _ = before.partition(f"\n{MEASURED}")
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(matrix)]
    backend = ", ".join(dict.fromkeys(seen.cell.backend for seen in matrix))
    title = f"# The kill matrix: {backend}\n\n[What it shows, and how to get it.](kill-matrix.md)\n"
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores"
    measured = f"\n{MEASURED}{machine}, {len(matrix)} cells, {backend}.\n\n"
    return (text or title) + measured + "\n".join(lines) + "\n"


def as_json(matrix: Sequence[Seen]) -> str:
    cells = [asdict(seen) | {"complaints": seen.complaints()} for seen in matrix]
    return json.dumps({"kernel": platform.release(), "cells": cells}, indent=1) + "\n"


def _let_go(seen: Seen) -> str:
    if not seen.held:
        return "no connection"
    return "goes on" if seen.let_go_s is None else _time(seen.let_go_s)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
