"""The first request of an HTTP/1 client, read without taking part in it: which host it asks for.

RFC 9112 3 (request line), 3.2.1 (origin-form), 5 (fields); RFC 9110 7.2 (Host). For registries without TLS,
whose only name on the wire this is.

The input is what was *peeked*: everything from the connection's first byte on, as far as it has arrived.
This module answers nothing and checks no more than it must: whatever is not plainly one request in
origin-form with one Host field is `NotHttp`, and such a connection goes on untouched.
"""

import re
from dataclasses import dataclass

from tidegate_proxy.interception.client_hello import NeedMore

MAX_HEAD_BYTES = 16 * 1024
"""The most that is ever peeked; registries' tokens, which heads carry, stay below 8 KiB."""

_END = b"\r\n\r\n"
_METHOD = re.compile(rb"[A-Z]{1,16}\Z")
_REQUEST_LINE = re.compile(rb"[A-Z]{1,16} /[!-~]* HTTP/1\.[01]\Z")
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,255})(?::[0-9]{1,5})?\Z")


@dataclass(frozen=True, slots=True)
class HttpHead:
    """Whom the client asks for: `host` in lower case, without port and trailing dot."""

    host: str


@dataclass(frozen=True, slots=True)
class NotHttp:
    """These bytes cannot begin a request with a host, however they go on."""


def parse_http_head(data: bytes) -> HttpHead | NeedMore | NotHttp:
    """What the bytes at the start of a connection say; never raises, whatever they are."""
    head, end, _ = data.partition(_END)
    if len(head) > MAX_HEAD_BYTES:
        return NotHttp()
    line, newline, fields = head.partition(b"\r\n")
    if not (newline or end):
        method, space, target = line.partition(b" ")
        if not _METHOD.match(method) or (space and target[:1] not in (b"", b"/")):
            return NotHttp()
    elif not _REQUEST_LINE.match(line):
        return NotHttp()
    if not end:
        return NeedMore(len(data) + 1) if len(data) <= MAX_HEAD_BYTES else NotHttp()
    hosts = [value.strip(b" \t") for name, value in map(_field, fields.split(b"\r\n")) if name == b"host"]
    host = _HOST.match(hosts[0]) if len(hosts) == 1 else None
    return NotHttp() if host is None else HttpHead(host["name"].decode().lower().removesuffix("."))


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value
