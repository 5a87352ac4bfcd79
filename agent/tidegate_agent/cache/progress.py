"""A pull's progress: a bar per layer on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from tidegate_proxy.operating.forms import PullEvent

_SHORT = 12


def follow(events: Iterable[PullEvent], console: Console) -> list[PullEvent]:
    """Show the events as they come; the failures among them."""
    if console.is_terminal:
        return _bars(events, console)
    failures = []
    for event in events:
        for line in plain_lines(event):
            console.file.write(f"{line}\n")
        console.file.flush()
        if event.event == "failed":
            failures.append(event)
    return failures


def plain_lines(event: PullEvent) -> Iterator[str]:
    """What is worth a line of a log: beginnings and ends, no steps between. Pure."""
    match event.event, event.state:
        case "manifest", _:
            yield f"{event.ref}: {event.digest}"
        case "blob", "cached":
            yield f"{event.ref}: {_short(event)} {decimal(event.size_bytes)} cached"
        case "blob", "done":
            yield f"{event.ref}: {_short(event)} {decimal(event.size_bytes)} pulled"
        case "done", "cached":
            yield f"{event.ref}: all of it was cached"
        case "done", _:
            yield f"{event.ref}: pulled"


def _bars(events: Iterable[PullEvent], console: Console) -> list[PullEvent]:
    failures = []
    tasks: dict[tuple[str, str], TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        for event in events:
            if event.event == "failed":
                failures.append(event)
            elif event.event == "blob":
                key = (event.ref, event.digest)
                if key not in tasks:
                    name = f"{_name(event.ref)} {_short(event)}"
                    tasks[key] = progress.add_task(name, total=event.size_bytes, state="")
                progress.update(tasks[key], completed=event.bytes, state=event.state)
            else:
                for line in plain_lines(event):
                    progress.console.print(line, highlight=False, soft_wrap=True)
    return failures


def _short(event: PullEvent) -> str:
    return event.digest.partition(":")[2][:_SHORT]


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]
