"""How a fetch stands for its readers, and how it ended for whoever counts. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tidegate_proxy.oci.digest import Digest, Hasher

Ending = Literal["stored", "unstored", "mismatch", "broken", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnded:
    """How a fetch ended, for metrics and the log: `received_bytes` came from the origin.

    `healed` says what it got over, and how often.
    """

    digest: Digest
    ending: Ending
    received_bytes: int
    cause: str = ""
    healed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The hash of a blob's first `position` bytes: where a reader that goes on alone may start."""

    position: int
    hasher: Hasher


@dataclass(frozen=True, slots=True)
class Verified:
    """All bytes are in the file and have the right digest."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Unstored:
    """The disk failed: the file holds good bytes up to the checkpoint, and no more will come."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Mismatched:
    """All bytes came, and their digest is another one."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The origin failed for good, or the fetch was stopped: no reader can be served to the end."""

    cause: str


Outcome = Verified | Unstored | Mismatched | Broken
