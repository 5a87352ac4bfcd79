"""Which process has a file open, from what /proc shows of processes' descriptors (proc(5))."""

import os
from pathlib import Path


def holder_of(target: str, *, proc: Path = Path("/proc")) -> int | None:
    """The first process with a descriptor of `target`, such as `socket:[4711]`; None when none is seen."""
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                for descriptor in (process / "fd").iterdir():
                    if os.readlink(descriptor) == target:  # noqa: PTH115 (Path.readlink normalises socket:[])
                        return int(process.name)
            except OSError:  # it ended meanwhile, or is not ours to look into
                continue
    return None
