"""Since when the system's trust store has vouched for a host, without a gap that we know of.

A reissued certificate dates the anchor anew, and yet a program that read the store before it trusts us as
ever for the hosts that it has: same key, same subject. So each name keeps the time at which it came, for as
long as an agent that runs has seen the store hold it. What nobody saw counts from the anchor's date.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

_FILE = "trusted-since.json"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """The anchor's date when this was written, and the date of each name that it covers."""

    at: float
    names: dict[str, float]


class TrustedSince:
    """Dates by host name, in seconds since the epoch; kept in the state directory."""

    def __init__(self, state_dir: Path, anchored: Callable[[], float | None]) -> None:
        """`anchored` tells the date of the anchor; None without a store, and then nobody trusts us."""
        self._file = state_dir / _FILE
        self._anchored = anchored
        self._record = _read(self._file)
        self._lost = True

    def __call__(self, host: str = "") -> float | None:
        """For a host; for all of them without one."""
        at = self._anchored()
        if at is None or self._record is None or self._record.at != at:
            return at
        dates = [
            date
            for name, date in self._record.names.items()
            if not host or host == name or host.endswith(f".{name}")
        ]
        if not dates:
            return at
        return min(dates) if host else max(dates)

    def lost(self) -> None:
        """The store does not hold our certificate: whoever reads it now will not trust us."""
        self._lost = True

    def holds(self, names: Sequence[str], *, reissued: bool) -> None:
        """It holds one for these names; `reissued`: in the place of another one that it held until now."""
        at = self._anchored()
        old, seen = self._record, not self._lost
        self._lost = False
        if at is None or (old is not None and old.at == at and old.names.keys() == set(names)):
            return
        self._record = _Record(at=at, names=dict(_dates(at, names, old if seen else None, reissued=reissued)))
        # Without the file a restart counts from the anchor's date, which is on the safe side.
        with suppress(OSError):
            new = self._file.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self._record))
            new.replace(self._file)


def _dates(at: float, names: Sequence[str], old: _Record | None, *, reissued: bool) -> Mapping[str, float]:
    """The anchor is dated once more when the bundle holds it: what came with it is as late as that."""
    if old is None:
        return dict.fromkeys(names, at)
    known = old.names if reissued else {name: date for name, date in old.names.items() if date < old.at}
    return {name: known.get(name, at) for name in names}


def _read(file: Path) -> _Record | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None
