"""A bounded memory in front of slower storage: least recently used entries go first.

Values that were read slowly may be older than what was written meanwhile, so they are kept only when
nothing was written since their read began. This module does no I/O.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Missing(Enum):
    """The type of MISSING, which stands for no entry; None is a value like any other."""

    MISSING = 0


MISSING: Final = Missing.MISSING


class Remembered(Generic[K, V]):
    """At most `limit` entries."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.writes = 0

    def get(self, key: K) -> V | Missing:
        """The value, or MISSING."""
        value = self._entries.get(key, MISSING)
        if value is not MISSING:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value or None, as quickly as can be: it does not count as a use."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Remember what was written."""
        self.writes += 1
        self._keep(key, value)

    def forget(self, key: K) -> None:
        """Something was written that this memory cannot tell."""
        self.writes += 1
        self._entries.pop(key, None)

    def learn(self, key: K, value: V, *, writes_before: int) -> None:
        """Remember what was read, if nothing was written since `writes` stood at `writes_before`."""
        if self.writes == writes_before:
            self._keep(key, value)

    def _keep(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
