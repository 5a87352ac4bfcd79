"""Tells the demo as it is played: for people, on a terminal or in a log. Decides nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .evidence import Claim, size
from .scenes import BYTES_PER_S, Outcome, Scene, Stage

INDENT = 3
WIDEST = 100


class Narrator:
    def __init__(self, console: Console):
        self._console = console
        self._scenes: list[tuple[Scene, Outcome]] = []

    def prologue(self) -> None:
        self._say("Tidegate in a minute", style="bold")
        self._say(
            "A lab on this machine, made of network namespaces: a node, a second node without Tidegate,"
            f" a resolver, and a registry that sends {BYTES_PER_S // 1_000_000} MB a second. The clients are"
            " the real ones. Nothing outside the lab is changed, and no network is needed."
        )

    def ready(self, stage: Stage, duration_s: float) -> None:
        wanted = stage.wanted
        self._say(
            f"It runs after {duration_s:.1f} s; the registry has an image of {wanted.blobs} blobs,"
            f" {size(wanted.size_bytes)}."
        )

    def begins(self, number: int, scene: Scene) -> None:
        self._console.print()
        self._say(f"{number}. {scene.name}", style="bold")
        self._say(scene.happens, indent=INDENT)

    def ended(self, scene: Scene, outcome: Outcome) -> None:
        self._scenes.append((scene, outcome))
        self._say(_summary(outcome), indent=INDENT, style="cyan")
        for claim in outcome.claims:
            self._claim(claim)
        if all(claim.holds for claim in outcome.claims):
            self._say(f"So: {scene.proves}", indent=INDENT, style="italic")

    def epilogue(self, duration_s: float) -> None:
        self._console.print()
        self._console.print(_table(self._scenes))
        self._console.print()
        self._say(f"Every step showed what it claims, in {duration_s:.0f} s. The lab is gone.", style="bold")

    def failed(self, what: str, causes: Iterable[str], to_type: Iterable[tuple[str, str]]) -> None:
        self._console.print()
        self._say(f"{what} failed:", style="bold red")
        for cause in causes:
            self._say(cause, indent=INDENT)
        self._say("What to type:")
        for command, why in to_type:
            self._say(command, indent=INDENT)
            self._say(why, indent=2 * INDENT)

    def log(self, title: str, lines: Iterable[str]) -> None:
        self._say(title, style="bold")
        for line in lines:
            self._console.print(Text("   " + line), soft_wrap=True)

    def stopped(self, signal_name: str) -> None:
        self._console.print()
        self._say(f"Stopped by {signal_name}. The lab is gone.")

    def _claim(self, claim: Claim) -> None:
        said = claim.said if claim.holds else f"{claim.said}; expected: {claim.expected}"
        lines = self._wrapped(said, INDENT + 4)
        mark = ("ok", "green") if claim.holds else ("NO", "bold red")
        self._console.print(Text.assemble(" " * INDENT, mark, "  ", lines[0].lstrip()), soft_wrap=True)
        for line in lines[1:]:
            self._console.print(Text(line), soft_wrap=True)

    def _say(self, text: str, *, indent: int = 0, style: str = "") -> None:
        for line in self._wrapped(text, indent):
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _wrapped(self, text: str, indent: int) -> list[str]:
        """For reading, and without the blanks that rich fills lines with."""
        width = min(self._console.width, WIDEST)
        margin = " " * indent
        return textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin) or [""]


def _summary(outcome: Outcome) -> str:
    parts = [_duration(outcome.duration_s)]
    if outcome.from_registry_bytes is not None:
        parts.append(f"from the registry {size(outcome.from_registry_bytes)}")
    if outcome.from_cache_bytes is not None:
        parts.append(f"from the cache {size(outcome.from_cache_bytes)}")
    return ", ".join(parts)


def _table(scenes: Iterable[tuple[Scene, Outcome]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for heading in ("time", "from the registry", "from the cache"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (scene, outcome) in enumerate(scenes, 1):
        sources = (outcome.from_registry_bytes, outcome.from_cache_bytes)
        table.add_row(
            f"{number}. {scene.name}",
            _duration(outcome.duration_s),
            *("-" if count is None else size(count) for count in sources),
        )
    return table


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
