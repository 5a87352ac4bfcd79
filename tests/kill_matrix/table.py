"""The matrix as a table for people, as Markdown for the documentation, and as JSON."""

from __future__ import annotations

import json
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

PREFACE = """# The kill matrix

What happens to whom when the agent dies, measured with real clients. Get it again (root, some ten minutes):

    script/kill-matrix --markdown docs/operations/kill-matrix.md

| column | meaning |
|---|---|
| direct after | from the death to the first new connection that reached the registry itself |
| connection let go | from the death to the end (FIN, RST) of the client's last connection through the agent |
| what was in flight | how the client's pull, push, query or connection ended, counted from the death |
| retry | the same again, from the start |
| left | rules, addresses, routes, sets, mounts, processes and ports that were not there before the agent |

Deaths: SIGKILL and SIGSTOP meet the agent (its supervisor then starts another), SIGTERM the supervisor, which
passes it on; *supervisor killed* makes the agent end in order by itself; *both killed* leaves nobody but the
kernel to clean up.

Bounds, which `tests/netns/test_kill_matrix.py` holds every cell to: no connection hangs longer than the lease
and a second (4 s), what is in flight at a SIGTERM ends well, every retry succeeds, nothing is left behind.

- A pull or push that *ended well* although its connection ended was taken up again by the client itself; the
  time includes the client's own pauses (dockerd's is 5 s) and the rest of the transfer.
- A query that the agent had forwarded when it died is lost with it, as a datagram may be: the stub here asks
  again after 2 s, glibc and Go after 5 s. A client that fails after 5 s although its connection was let go at
  once probably had such a look-up in flight (inferred from the time, not traced).
  Queries unread in a hang are told SERVFAIL at the lease's end.
"""


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
            "no connection"
            if not seen.held
            else "goes on"
            if seen.let_go_s is None
            else _time(seen.let_go_s),
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


def markdown(matrix: Sequence[Seen]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(matrix)]
    measured = f"\nMeasured on Linux {platform.release()}, two cores shared with other work.\n\n"
    return PREFACE + measured + "\n".join(lines) + "\n"


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
