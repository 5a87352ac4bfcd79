"""Small manifests held in memory, ready to be sent: most requests of most pulls are for one of them."""

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from tidegate_proxy.answer import Answer
from tidegate_proxy.digest import Digest

LIMIT_BYTES = 16 * 1024 * 1024
LARGEST_BYTES = 256 * 1024
_EDITIONS = itertools.count()


@dataclass(slots=True, kw_only=True)
class ReadyAnswer:
    """The answer to a GET of one manifest; whoever renders it may keep its wire form beside it.

    `edition` tells it from every other, also from one that is made when this one is gone.
    """

    answer: Answer
    body: bytes
    wire: bytes | None = field(default=None, repr=False)
    edition: int = field(default_factory=_EDITIONS.__next__, repr=False)


class HotManifests:
    """The manifests used last, up to so many bytes; they are immutable and were verified before they came."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._entries: OrderedDict[Digest, ReadyAnswer] = OrderedDict()

    def get(self, digest: Digest) -> ReadyAnswer | None:
        """The manifest, if it is held."""
        ready = self._entries.get(digest)
        if ready is not None:
            self._entries.move_to_end(digest)
        return ready

    def put(self, digest: Digest, answer: Answer, body: bytes) -> None:
        """Hold a manifest, unless it is large."""
        if len(body) > LARGEST_BYTES or digest in self._entries:
            return
        self._entries[digest] = ReadyAnswer(answer=answer, body=body)
        self._held_bytes += len(body)
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._held_bytes -= len(dropped.body)
