"""One request head without a body, read strictly (RFC 9112): exactly that, or nothing is read. Pure."""

from dataclasses import dataclass

MAX_HEAD_BYTES = 16 * 1024
_METHODS = frozenset({b"GET", b"HEAD"})
# A body, or a head that wants more than a plain answer: for the full server.
_NOT_PLAIN = frozenset(
    {b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"range", b"if-none-match", b"if-match"}
)
# Fields that nobody puts a credential into.
_OPEN = frozenset(
    {
        b"host",
        b"connection",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"docker-distribution-api-version",
    }
)
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A request without a body.

    `closes` when the client wants the connection closed after the answer; `open` when no credential can be in
    it, so that it may be kept: only well-known fields, and no query, which may be signed.
    """

    method: str
    target: str
    host: str
    closes: bool
    open: bool


def parse_plain_head(data: bytes) -> PlainHead | None:
    """The request, when `data` is exactly one plain head; None for everything else, malformed or not."""
    if len(data) > MAX_HEAD_BYTES or not data.endswith(b"\r\n\r\n") or not data.isascii() or b"\0" in data:
        return None
    lines = data[:-4].split(b"\r\n")
    if data.count(b"\n") != len(lines) + 1 or data.count(b"\r") != len(lines) + 1:
        return None  # a line end of another kind
    words = lines[0].split(b" ")
    if len(words) != 3 or words[0] not in _METHODS or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return None
    host, connection, is_open = None, b"", b"?" not in words[1]
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or not _TOKEN.issuperset(name) or name in _NOT_PLAIN:
            return None
        if name == b"host":
            if host is not None:
                return None
            host = value.strip()
        elif name == b"connection":
            connection = value.strip().lower()
        elif name not in _OPEN:
            is_open = False
    if host is None or connection not in (b"", b"close", b"keep-alive"):
        return None
    if words[2] == b"HTTP/1.0" and connection == b"keep-alive":
        return None
    return PlainHead(
        words[0].decode(),
        words[1].decode(),
        host.decode(),
        connection == b"close" or words[2] == b"HTTP/1.0",
        is_open,
    )
