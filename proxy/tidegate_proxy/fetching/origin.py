"""Where a blob's bytes come from when the store lacks them, as the fetch sees it.

An `Origin` is one blob at one place with one right to read it: the upstream side implements it over
HTTP, tests over memory. Its errors are named by reaction. This module does no I/O.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from tidegate_core.errors import TidegateError
from tidegate_proxy.storage.reading import BodyBroken


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


class OriginBody(Protocol):
    """One answer of an origin; close it in any case."""

    @property
    def first(self) -> int:
        """The position its bytes really start at: 0 when the origin ignored Range."""
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

    async def read(self, first: int) -> OriginBody:
        """Ask for the blob from byte `first`, with Range when > 0; raise OriginRefused, OriginUnreachable."""
        ...
