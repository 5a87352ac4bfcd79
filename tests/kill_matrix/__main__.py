"""Plays the kill matrix, prints it and writes it: `script/kill-matrix`. Exit code 1 when one is not right."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console

from lab import Lab
from lab.requirements import missing

from .cell import all_cells, some_cells
from .stage import play
from .table import as_json, for_people, markdown


@click.command()
@click.option("--some", is_flag=True, help="Every moment with every death once, the clients taking turns.")
@click.option("--only", default="", help="Cells whose name holds this, such as 'dockerd, push'.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write the table here.")
def main(some: bool, only: str, json_path: Path | None, markdown_path: Path | None) -> None:
    """What clients experience when the agent dies: client x moment x death."""
    if reason := missing():
        sys.exit(reason)
    console = Console(width=None if sys.stdout.isatty() else 160)
    cells = [cell for cell in (some_cells() if some else all_cells()) if only in str(cell)]
    matrix = []
    with suppress(KeyboardInterrupt), Lab() as lab:  # what has been seen until then is shown
        for number, seen in enumerate(play(lab, cells), start=1):
            complaints = "; ".join(seen.complaints()) or "as it should be"
            console.print(f"{number}/{len(cells)} {seen.cell}: {complaints}", highlight=False, markup=False)
            matrix.append(seen)
    console.print(for_people(matrix))
    if json_path is not None:
        json_path.write_text(as_json(matrix))
    if markdown_path is not None:
        markdown_path.write_text(markdown(matrix))
    sys.exit(any(seen.complaints() for seen in matrix))


if __name__ == "__main__":
    main()
