"""Which header fields stay with a connection and which travel on (RFC 9110, 7.6.1)."""

from collections.abc import Iterable, Mapping

from multidict import CIMultiDict

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def end_to_end(fields: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The fields that a proxy passes on: all but the hop-by-hop ones and those that Connection names."""
    kept = list(fields)
    named = {
        option.strip().lower()
        for name, value in kept
        if name.lower() == "connection"
        for option in value.split(",")
    }
    return CIMultiDict((name, value) for name, value in kept if name.lower() not in _HOP_BY_HOP | named)


def content_length(fields: Mapping[str, str]) -> int | None:
    """What Content-Length promises, None when it is absent or malformed (RFC 9110, 8.6)."""
    length = fields.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


_DESCRIPTIVE = frozenset(
    {"content-length", "content-type", "docker-content-digest", "docker-distribution-api-version", "etag"}
)


def descriptive(fields: Mapping[str, str]) -> CIMultiDict[str]:
    """The fields that say what a representation is: the answer to a HEAD."""
    return CIMultiDict((name, value) for name, value in fields.items() if name.lower() in _DESCRIPTIVE)
