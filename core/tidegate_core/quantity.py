"""Sizes and durations as people write them in a configuration: "20GiB", "500MB", "10m", "1h30m".

Sizes use the IEC 80000-13 binary prefixes (KiB, MiB, ...) and the SI decimal ones (kB, MB, ...); a bare
"20G" is refused because people mean both by it. Durations are integers with units in falling order.
There are no fractions and no signs: every value has an exact text, and parsing that text gives it back.
"""

import re
from datetime import timedelta

SIZE_FORM = 'a size such as "20GiB", "500MB" or "0"'
DURATION_FORM = 'a duration such as "10m", "3s", "30d" or "1h30m"'

_SIZE_UNITS = {
    "PiB": 2**50, "PB": 10**15, "TiB": 2**40, "TB": 10**12, "GiB": 2**30, "GB": 10**9,
    "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "kB": 10**3, "KB": 10**3, "B": 1, "": 1,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,20})([A-Za-z]*)", re.ASCII)

_MICROSECONDS = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,18}}){unit})?" for unit in _MICROSECONDS), re.ASCII)


def parse_size(text: str) -> int:
    """Bytes from "20GiB", "500MB", "512B" or a bare number of bytes; ValueError for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None or found[2] not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not {SIZE_FORM}")
    return int(found[1]) * _SIZE_UNITS[found[2]]


def format_size(size_bytes: int) -> str:
    """The shortest exact text of a number of bytes: 2**30 is "1GiB", 10**9 is "1GB", 1 is "1B"."""
    if size_bytes < 0:
        raise ValueError("a size is never negative")
    if size_bytes == 0:
        return "0"
    exact = (
        f"{size_bytes // unit}{name}" for name, unit in _SIZE_UNITS.items() if name and not size_bytes % unit
    )
    return min(exact, key=len)


def parse_duration(text: str) -> timedelta:
    """A timedelta from "10m", "1h30m", "250ms" or "0"; ValueError for anything else."""
    if text == "0":
        return timedelta(0)
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(f"{text!r} is not {DURATION_FORM}")
    counts = zip(found.groups(), _MICROSECONDS.values(), strict=True)
    try:
        return timedelta(microseconds=sum(int(count) * unit for count, unit in counts if count is not None))
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than a duration can be") from error


def format_duration(duration: timedelta) -> str:
    """The exact text of a duration that is not negative: 90 minutes are "1h30m"."""
    rest = duration // timedelta(microseconds=1)
    if rest < 0:
        raise ValueError("a duration is never negative")
    text = ""
    for name, unit in _MICROSECONDS.items():
        count, rest = divmod(rest, unit)
        text += f"{count}{name}" if count else ""
    return text or "0s"
