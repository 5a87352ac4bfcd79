"""The first flight of a TLS client, read without taking part in it.

RFC 8446 5.1 (records), 4 (handshake messages), 4.1.2 (ClientHello), 4.2 (extensions); RFC 6066 3
(server_name); RFC 7301 3.1 (ALPN). TLS 1.0 to 1.3 share all of it. GREASE (RFC 8701) needs no care:
unknown values are skipped whatever they are.

The input is what was *peeked*: everything from the connection's first byte on, as far as it has arrived.
This module does not check that the handshake could succeed, and knows neither ECH nor DTLS nor SSLv2.
Whatever cannot be a well-formed ClientHello is `NotTls`: such a connection goes on untouched to where the
client wanted it, so refusing to guess never costs anybody anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_HELLO_BYTES = 64 * 1024
"""The most that is ever peeked. The largest hellos seen, with post-quantum key shares, are near 2 KiB."""

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_RECORD_HEADER = 5
_HANDSHAKE_HEADER = 4
_MAX_FRAGMENT = 1 << 14
_MAX_RECORDS = 64  # more than any client uses; keeps hostile one-byte records from costing time
_SERVER_NAME = 0
_HOST_NAME = 0
_ALPN = 16

_NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


@dataclass(frozen=True, slots=True)
class ClientHello:
    """Who the client asks for: `sni` in lower case without a trailing dot, or None; `alpn` in its order."""

    sni: str | None
    alpn: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Nothing can be said before `at_least` bytes, counted from the connection's first byte, are there."""

    at_least: int


@dataclass(frozen=True, slots=True)
class NotTls:
    """These bytes cannot begin a ClientHello, however they go on."""


class _Malformed(Exception):
    """A length that points past its end, or a field that the RFC forbids."""


def parse_client_hello(data: bytes) -> ClientHello | NeedMore | NotTls:
    """What the bytes at the start of a connection say; never raises, whatever they are."""
    message = _handshake_message(data)
    if not isinstance(message, bytes):
        return message
    try:
        return _client_hello(message)
    except _Malformed:
        return NotTls()


def _handshake_message(data: bytes) -> bytes | NeedMore | NotTls:
    """The body of the first handshake message, put together from as many records as it spans."""
    message = bytearray()
    at, whole, missing = 0, _HANDSHAKE_HEADER, _HANDSHAKE_HEADER
    for _ in range(_MAX_RECORDS):
        header = data[at : at + _RECORD_HEADER]
        if header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\x03"):
            return NotTls()
        if len(header) < _RECORD_HEADER:
            return _need(at, missing)
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _MAX_FRAGMENT:
            return NotTls()
        end = at + _RECORD_HEADER + length
        message += data[at + _RECORD_HEADER : end]
        if message and message[0] != _CLIENT_HELLO:
            return NotTls()
        if len(message) >= _HANDSHAKE_HEADER:
            whole = _HANDSHAKE_HEADER + int.from_bytes(message[1:4], "big")
        missing = whole - len(message) - max(0, end - len(data))
        if end > len(data):
            return _need(end, max(0, missing))
        if missing <= 0:
            return bytes(message[_HANDSHAKE_HEADER:whole])
        at = end
    return NotTls()


def _need(at: int, missing: int) -> NeedMore | NotTls:
    """What has to come in any case: `missing` bytes of the message after offset `at`, in whole records.

    Asking for that much at once is what makes a client that sends one byte at a time cost a handful of
    wake-ups and not one a byte.
    """
    at_least = at + missing + _RECORD_HEADER * -(-missing // _MAX_FRAGMENT)
    return NeedMore(at_least) if at_least <= MAX_HELLO_BYTES else NotTls()


class _Reader:
    """Vectors of RFC 8446 3.4, taken from the front."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Malformed
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int, *, least: int = 0) -> bytes:
        length = self.number(width)
        if length < least:
            raise _Malformed
        return self.take(length)


def _client_hello(body: bytes) -> ClientHello:
    reader = _Reader(body)
    reader.take(2 + 32)  # legacy_version, random
    if len(reader.vector(1)) > 32:  # legacy_session_id
        raise _Malformed
    reader.vector(2, least=2)  # cipher_suites
    reader.vector(1, least=1)  # legacy_compression_methods
    extensions = dict(_extensions(_Reader(reader.vector(2)))) if reader else {}
    if reader:
        raise _Malformed
    server_name = extensions.get(_SERVER_NAME)
    alpn = extensions.get(_ALPN)
    return ClientHello(
        sni=None if server_name is None else _server_name(server_name),
        alpn=() if alpn is None else tuple(_protocols(alpn)),
    )


def _extensions(reader: _Reader) -> Iterator[tuple[int, bytes]]:
    """Type and content of each; a type that comes twice (RFC 8446 4.2) might be read either way: refused."""
    seen: set[int] = set()
    while reader:
        kind = reader.number(2)
        if kind in seen:
            raise _Malformed
        seen.add(kind)
        yield kind, reader.vector(2)


def _server_name(content: bytes) -> str | None:
    outer = _Reader(content)
    names = _Reader(outer.vector(2, least=1))
    if outer:
        raise _Malformed
    host: bytes | None = None
    while names:
        name_type = names.number(1)
        name = names.vector(2, least=1)
        if name_type == _HOST_NAME:
            if host is not None:
                raise _Malformed
            host = name
    return None if host is None else _host_name(host)


def _host_name(name: bytes) -> str | None:
    """The DNS name, or None for an IP literal (RFC 6066 forbids it) and for what no DNS name can be."""
    name = name.lower().removesuffix(b".")
    labels = name.split(b".")
    if len(name) > 253 or not _NAME_BYTES.issuperset(name):
        return None
    if not all(0 < len(label) <= 63 for label in labels) or labels[-1].isdigit():
        return None
    return name.decode("ascii")


def _protocols(content: bytes) -> Iterator[str]:
    outer = _Reader(content)
    names = _Reader(outer.vector(2, least=2))
    if outer:
        raise _Malformed
    while names:
        yield names.vector(1, least=1).decode("latin-1")
