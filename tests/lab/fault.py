"""What can go wrong at the origin, as values that travel to the front and meet the next matching requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Resource = Literal["any", "ping", "token", "manifest", "blob", "bytes", "other"]
"""What a request is for. `blob` is the blob URL of the registry (answered with a redirect), `bytes` is what
carries a blob's bytes: from the blob host, or from the registry when redirects are off."""

Place = Literal["first", "middle", "last"] | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: the requests it meets, then what it does to their answers. Effects combine."""

    on: Resource = "any"
    matching: str = ""  # a regular expression searched in "METHOD host/path?query"
    times: int | None = 1  # None: until the faults are cleared
    skip: int = 0  # let so many matching requests through first

    # Instead of the answer
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)  # also added to an answer that is let through
    body: str = '{"errors":[{"code":"UNKNOWN","message":"a fault of the lab"}]}'
    hang_up: bool = False  # close without an answer

    # To the answer
    delay_s: float = 0  # before the first byte
    cut_at: int | None = None  # end the connection after so many body bytes; negative: counted from the end
    cut: Literal["close", "reset", "unannounced"] = "close"  # FIN after a TLS close_notify, RST, FIN alone
    refuse_s: float = 0  # after a cut: nobody listens for so long
    stall_at: int | None = None  # pause after so many body bytes
    stall_s: float = 3600
    bytes_per_s: int | None = None
    corrupt: Place | None = None  # flip the bits of one byte
    content_length: int | None = None  # claim this many bytes, whatever is sent
    content_length_off_by: int = 0  # or so many more or fewer than there are
    chunked: bool = False  # no Content-Length
    gzip: bool = False  # a Content-Encoding that nobody asked for, on a whole body (200)
    ignore_range: bool = False  # answer 200 with everything

    def as_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirects:
    """How the registry sends clients to the blob host: `hops` redirects of kind `status` before the bytes.

    Relative ones stay on the registry's own host name.
    """

    status: Literal[301, 302, 303, 307, 308] = 307
    hops: int = 1
    relative: bool = False
    signature_lifetime_s: float = 1200

    def as_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)
