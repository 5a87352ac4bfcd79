"""Small manifests held in memory, ready to be sent: most requests of most pulls are for one of them."""

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer

LIMIT_BYTES = 16 * 1024 * 1024
LARGEST_BYTES = 256 * 1024
_EDITIONS = itertools.count()


@dataclass(slots=True, kw_only=True)
class ReadyAnswer:
    """The answer to a GET of one manifest; whoever renders it may keep its wire form beside it.

    `noted` is when a use of it was last noted, by a clock that never goes back; `edition` tells it from every
    other, also from one that is made when this one is gone.
    """

    answer: Answer
    body: bytes
    wire: bytes | None = field(default=None, repr=False)
    noted: float = field(default=float("-inf"), repr=False)
    edition: int = field(default_factory=_EDITIONS.__next__, repr=False)


class HotManifests:
    """The manifests used last, up to so many bytes; they are immutable and were verified before they came."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        # By `encoded` alone, whose hash is computed once; no two algorithms have digests of one length.
        self._entries: OrderedDict[str, ReadyAnswer] = OrderedDict()

    def get(self, digest: Digest) -> ReadyAnswer | None:
        """The manifest, if it is held."""
        ready = self._entries.get(digest.encoded)
        if ready is not None:
            self._entries.move_to_end(digest.encoded)
        return ready

    def put(self, digest: Digest, answer: Answer, body: bytes) -> None:
        """Hold a manifest, unless it is large."""
        if len(body) > LARGEST_BYTES or digest.encoded in self._entries:
            return
        self._entries[digest.encoded] = ReadyAnswer(answer=answer, body=body)
        self._held_bytes += len(body)
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._held_bytes -= len(dropped.body)

    def drop(self, digest: Digest) -> None:
        """Let go of a manifest, if it is held."""
        dropped = self._entries.pop(digest.encoded, None)
        if dropped is not None:
            self._held_bytes -= len(dropped.body)
