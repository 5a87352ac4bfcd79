"""The head of a request at the CONNECT port, read strictly (RFC 9112; RFC 9110, 9.3.6). Pure.

What two readers could take for different requests is refused: this port decides who speaks to whom.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

from tidegate_core.errors import TidegateError

MAX_HEAD_BYTES = 16 * 1024
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")


class MalformedHead(TidegateError):
    """The head is not one that this port answers; the client is told why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A host and a port: a name in lower case, or an address; IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A tunnel is wanted to there; `via` is who passed the request on before."""

    to: Authority
    via: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of this port's own is wanted; `host` is the name that the client has for it, as in Host."""

    method: str
    path: str
    host: Authority | None
    via: str


def parse_head(head: bytes, *, own_port: int) -> Connect | Page:
    """A whole head, with its empty line; raises MalformedHead.

    A target in absolute form is a page when it names `own_port`: curl asks so where it has a proxy for http.
    """
    ends = head.count(b"\r\n")
    if not head.endswith(b"\r\n\r\n") or head.count(b"\n") != ends or head.count(b"\r") != ends:
        raise MalformedHead("its lines do not end with CR LF")
    lines = head[:-4].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not _VISIBLE.fullmatch(words[1]):
        raise MalformedHead("its first line is no request line of HTTP/1.1")
    fields = [_field(line) for line in lines[1:]]
    if any(name in ("content-length", "transfer-encoding") and value != "0" for name, value in fields):
        raise MalformedHead("it has a body")
    via = ", ".join(value for name, value in fields if name == "via")
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) > 1:
        raise MalformedHead("it has more than one Host")
    method, target = words[0], words[1]
    if method == "CONNECT":
        return Connect(to=parse_authority(target, default_port=None), via=via)
    host = parse_authority(hosts[0], default_port=80) if hosts and hosts[0] else None
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if scheme.lower() != "http" or not separator:
            raise MalformedHead("its target is neither a path nor an http URL")
        host = parse_authority(authority, default_port=80)
        if host.port != own_port:
            raise MalformedHead(
                "http without TLS is not passed on here: unset HTTP_PROXY, HTTPS_PROXY is enough"
            )
        target = slash + path or "/"
    return Page(method=method, path=target.partition("?")[0], host=host, via=via)


def parse_authority(text: str, *, default_port: int | None) -> Authority:
    """`host:port`; without a default the port must be there (RFC 9110, 9.3.6). Raises MalformedHead."""
    found = _AUTHORITY.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else default_port
    if found is None or port is None or not 0 < port < 65536:
        raise MalformedHead("its target is not HOST:PORT")
    if found["host"].startswith("["):
        try:
            return Authority(host=str(IPv6Address(found["host"][1:-1])), port=port)
        except ValueError:
            raise MalformedHead("its target is not HOST:PORT") from None
    host = found["host"].lower().removesuffix(".")
    if len(host) > 253 or not all(_NAME.fullmatch(label) for label in host.split(".")):
        raise MalformedHead("its target is not HOST:PORT")
    return Authority(host=host, port=port)


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name or not _TOKEN.issuperset(name) or not _VALUE.fullmatch(value):
        raise MalformedHead("a header field is malformed")
    return name.lower(), value.strip(" \t")
