"""Wait for a condition with a deadline: the only way a scenario lets time pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, within_s: float = 10, every_s: float = 0.01) -> T:
    """The first true value of `condition`; TimeoutError names `what` did not come."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s} s")
        time.sleep(every_s)
    return value
