"""The first flight of a TLS client, read without taking part in it.

RFC 8446 5.1 (records), 4 (handshake messages), 4.1.2 (ClientHello), 4.2 (extensions); RFC 6066 3
(server_name); RFC 7301 3.1 (ALPN). TLS 1.0 to 1.3 share all of it. GREASE (RFC 8701) needs no care:
unknown values are skipped whatever they are.

The input is what was *peeked*: everything from the connection's first byte on, as far as it has arrived.
This module does not check that the handshake could succeed, and knows neither ECH nor DTLS nor SSLv2.
Whatever cannot be a well-formed ClientHello is `NotTls`: such a connection goes on untouched to where the
client wanted it, so refusing to guess never costs anybody anything.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

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
_KNOWN_NAME_BYTES = 260  # of the longest DNS name and what frames it
_LENGTH = struct.Struct("!H")
_EXTENSION = struct.Struct("!HH")

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
    """Every client passes here, so it reads where it stands; what points past the end is found at the end."""
    sni: str | None = None
    alpn: tuple[str, ...] = ()
    size = len(body)
    try:
        at = 2 + 32  # legacy_version, random
        if body[at] > 32:  # legacy_session_id
            raise _Malformed
        at += 1 + body[at]
        (length,) = _LENGTH.unpack_from(body, at)  # cipher_suites
        if length < 2:
            raise _Malformed
        at += 2 + length
        if body[at] < 1:  # legacy_compression_methods
            raise _Malformed
        at += 1 + body[at]
        if at == size:
            return ClientHello(sni=None, alpn=())
        (length,) = _LENGTH.unpack_from(body, at)
        at += 2
        if at + length != size:
            raise _Malformed
        seen: set[int] = set()
        while at < size:
            kind, length = _EXTENSION.unpack_from(body, at)
            at += 4
            # A type that comes twice (RFC 8446 4.2) might be read either way: refused.
            if kind in seen or at + length > size:
                raise _Malformed
            seen.add(kind)
            if kind == _SERVER_NAME:
                content = body[at : at + length]
                sni = (_known_name if length <= _KNOWN_NAME_BYTES else _server_name)(content)
            elif kind == _ALPN:
                alpn = tuple(_protocols(body[at : at + length]))
            at += length
    except (IndexError, struct.error) as error:
        raise _Malformed from error
    return ClientHello(sni=sni, alpn=alpn)


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


_known_name = lru_cache(maxsize=256)(_server_name)  # the same few names come again and again


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
