"""Where a blob's bytes come from when the store lacks them, as the fetch sees it.

An `Origin` is one blob at one place with one right to read it: the upstream side implements it over
HTTP, tests over memory. Its errors are named by reaction. This module does no I/O.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Literal, Protocol, get_args

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.byte_range import RangeRequest
from tidegate_proxy.storage.reading import BodyBroken

Trouble = Literal["reset", "truncated", "stalled", "refused", "unreachable", "size", "restart"]
"""What a fetch can be healed of: a connection reset, a body that ended early, silence, an answer without the
bytes (5xx, 429, an expired signature), no answer, another size; and our own end, which the bytes survived."""

TROUBLES: tuple[Trouble, ...] = get_args(Trouble)


class OriginRefused(TidegateError):
    """The origin answered, but not with the blob; `status` is its answer, which may be passed on."""

    def __init__(
        self, status: int, *, headers: Mapping[str, str] | None = None, body: bytes = b"", cause: str = ""
    ) -> None:
        super().__init__(cause or f"the origin answered {status}")
        self.status = status
        self.headers: Mapping[str, str] = headers or {}
        self.body = body


class OriginUnreachable(TidegateError):
    """The origin gave no answer: not resolved, refused, TLS failed, or too slow."""


class OriginBroken(BodyBroken):
    """The origin cut or stalled its body, and could not be made to go on."""

    def __init__(self, cause: str, *, trouble: Trouble = "truncated") -> None:
        super().__init__(cause)
        self.trouble = trouble


class OriginBody(Protocol):
    """One answer of an origin; close it in any case."""

    @property
    def first(self) -> int:
        """The position its bytes really start at: 0 when the origin ignored Range."""
        ...

    @property
    def ranged(self) -> bool:
        """Whether these are the bytes of a range (206), not the whole (200)."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """The size of the whole blob, if the origin told it."""
        ...

    @property
    def media_type(self) -> str | None:
        """Its Content-Type, if it has one."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive; raises OriginBroken on a cut."""
        ...

    async def close(self) -> None:
        """Give the connection back or drop it; never raises."""
        ...


class Origin(Protocol):
    """One blob at one place.

    Origins that compare equal stand for the same request with the same right: readers with equal
    origins share a refusal, one with another origin asks for itself. Make it a frozen dataclass.
    """

    async def read(self, wanted: RangeRequest) -> OriginBody:
        """Ask for these bytes, for `From(0)` without Range; raise OriginRefused, OriginUnreachable.

        A body that is ranged begins where it was asked to; it may end earlier. A redirect is followed anew
        each time, for its signature may have expired.
        """
        ...
