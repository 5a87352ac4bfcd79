"""Since when the system's trust store holds our anchor, as far as files tell.

A program that read the store earlier does not trust us. The anchor's own file says it, not the bundle, which
every other change to the store renews. Times are the file system's: a clock that was set meanwhile misleads,
and then the client's own alert is what tells.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate_agent.trust.store import Anchor, Store
from tidegate_core.errors import TidegateError


def anchor_clock(state_dir: Path, bundle: Path | None) -> Callable[[], float | None]:
    """A function that tells the time in seconds since the epoch, None without a store: nobody trusts us."""
    anchor = Anchor.of(state_dir, root=Path("/"))
    files: list[Path] = []
    # Some families' anchors are installed by hand, under a name that we do not know.
    with contextlib.suppress(TidegateError):
        files.append(Store.of(Path("/"), certificate=anchor.certificate).anchor_file(anchor))
    if bundle is not None:
        files.append(bundle)
    return lambda: _changed(files)


def _changed(files: Sequence[Path]) -> float | None:
    for file in files:
        try:
            return file.stat().st_mtime
        except OSError:
            continue
    return None
