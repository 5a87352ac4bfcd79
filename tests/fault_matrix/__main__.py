"""Plays the client by fault matrix, prints it and writes it: `script/fault-matrix`.

Each cell twice: the client alone, and through the agent. Exit code 0: every pull through the agent ended
well, or nothing could have helped; 1: one did not; 2: wrong usage; 130: Ctrl-C, nothing was written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from lab import Lab
from lab.requirements import missing

from .row import CLIENTS, Row, rows
from .stage import Seen, Stage
from .table import for_people, markdown

Key = tuple[str, str]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what takes half a minute by its nature.")
@click.option("--only", default="", help="Cells whose name holds this, such as '503 once, CDN' or 'skopeo'.")
@click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path),
    help="Write the table here, below the text that is there.",
)
def main(everything: bool, only: str, markdown_path: Path | None) -> None:
    """What an origin's faults cost real clients, directly and through the agent."""
    if reason := missing():
        sys.exit(reason)
    console = Console(width=None if sys.stdout.isatty() else 200)
    wanted = [row for row in rows() if everything or not row.takes_long]
    cells = [(row, client) for row in wanted for client in CLIENTS if only in f"{row}, {client}"]
    if not cells:
        raise click.UsageError(f"no cell's name holds {only!r}; one is '{wanted[0]}, {CLIENTS[0]}'")
    try:
        seen = _play(cells, console)
    except KeyboardInterrupt:
        sys.exit(130)
    console.print(for_people(wanted, seen))
    if markdown_path is not None:
        before = markdown_path.read_text() if markdown_path.exists() else ""
        markdown_path.write_text(markdown(wanted, seen, before=before))
    sys.exit(any(not seen[row.name, client][1].well and not row.hopeless for row, client in cells))


def _play(cells: Sequence[tuple[Row, str]], console: Console) -> dict[Key, tuple[Seen, Seen]]:
    """Each cell directly, then each through the agent; a cell that a client does not meet stays as it is."""
    ways: list[dict[Key, Seen]] = []
    with Lab() as lab:
        for through in (False, True):
            lab.reset()
            stage = Stage(lab, through=through)
            ended: dict[Key, Seen] = {}
            for number, (row, client) in enumerate(cells, start=1):
                seen = ended[row.name, client] = stage.play(row, client)
                way = "through the agent" if through else "directly"
                told = f"{'well' if seen.well else 'fails'} after {seen.pull.duration_s:.1f} s"
                console.print(
                    f"{number}/{len(cells)} {way}: {row}, {client}: {told}", highlight=False, markup=False
                )
            ways.append(ended)
    return {key: (ways[0][key], ways[1][key]) for key in ways[0]}


if __name__ == "__main__":
    main(prog_name="script/fault-matrix")
