"""Plays the kill matrix, prints it and writes it: `script/kill-matrix`.

Exit code 0: every cell is as it should be; 1: one is not; 2: wrong usage; 130: Ctrl-C, nothing was written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from lab import Lab
from lab.requirements import missing

from .cell import BACKENDS, Cell, Seen, all_cells, some_cells
from .stage import play
from .table import as_json, for_people, markdown


@click.command()
@click.option("--some", is_flag=True, help="Every moment with every death once, the clients taking turns.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default=BACKENDS[0],
    show_default=True,
    help="What steers, as steering.backend names it.",
)
@click.option("--only", default="", help="Cells whose name holds this, such as 'dockerd, push'.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path),
    help="Write the table here, below the text that is there.",
)
def main(some: bool, backend: str, only: str, json_path: Path | None, markdown_path: Path | None) -> None:
    """What clients experience when the agent dies: client x moment x death."""
    if reason := missing():
        sys.exit(reason)
    console = Console(width=None if sys.stdout.isatty() else 160)
    cells = [cell for cell in (some_cells(backend) if some else all_cells(backend)) if only in str(cell)]
    if not cells:
        raise click.UsageError(f"no cell's name holds {only!r}; one is '{next(all_cells(backend))}'")
    matrix: list[Seen] = []
    try:
        _play(cells, matrix, console)
    except KeyboardInterrupt:
        console.print(for_people(matrix))  # what has been seen until then
        sys.exit(130)
    console.print(for_people(matrix))
    if json_path is not None:
        json_path.write_text(as_json(matrix))
    if markdown_path is not None:
        before = markdown_path.read_text() if markdown_path.exists() else ""
        markdown_path.write_text(markdown(matrix, before=before))
    sys.exit(any(seen.complaints() for seen in matrix))


def _play(cells: Sequence[Cell], matrix: list[Seen], console: Console) -> None:
    with Lab() as lab:
        for number, seen in enumerate(play(lab, cells), start=1):
            complaints = "; ".join(seen.complaints()) or "as it should be"
            console.print(f"{number}/{len(cells)} {seen.cell}: {complaints}", highlight=False, markup=False)
            matrix.append(seen)


if __name__ == "__main__":
    main(prog_name="script/kill-matrix")
