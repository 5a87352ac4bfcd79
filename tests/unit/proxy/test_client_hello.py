"""The ClientHello parser: a value, need more, or not TLS; never an exception and never a guess."""

import itertools
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.interception.client_hello import (
    MAX_HELLO_BYTES,
    ClientHello,
    NeedMore,
    NotTls,
    parse_client_hello,
)

GREASE = 0x0A0A
KEY_SHARE = 51


def vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, content)


def server_name(*names: bytes, name_type: int = 0) -> bytes:
    entries = b"".join(bytes([name_type]) + vector(2, name) for name in names)
    return extension(0, vector(2, entries))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, protocol) for protocol in protocols)))


def message(*extensions: bytes, body: bytes | None = None) -> bytes:
    """A handshake message; `body` replaces what the extensions would make."""
    if body is None:
        fixed = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, b"\x13\x01") + vector(1, b"\0")
        body = fixed + vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


def hello_body(
    extensions: bytes = b"",
    *,
    session_id: bytes = b"",
    cipher_suites: bytes = b"\x13\x01",
    compression_methods: bytes = b"\0",
) -> bytes:
    """What is well-formed but for what is given."""
    fixed = b"\x03\x03" + bytes(32) + vector(1, session_id) + vector(2, cipher_suites)
    return fixed + vector(1, compression_methods) + extensions


def records(handshake: bytes, cuts: Sequence[int] = ()) -> bytes:
    """The message in as many records as the cuts (and 2^14 bytes a record) make of it."""
    edges = sorted({0, len(handshake), *cuts, *range(0, len(handshake), 1 << 14)})
    edges = [edge for edge in edges if edge <= len(handshake)]
    pieces = [handshake[start:end] for start, end in itertools.pairwise(edges)]
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)


def real_hello(host: str, protocols: Sequence[str] = ("http/1.1",)) -> bytes:
    """What OpenSSL itself sends first."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(list(protocols))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def test_a_real_hello_names_its_host_and_protocols() -> None:
    """N6: the SNI decides who is intercepted."""
    hello = real_hello("registry-1.docker.io", ["h2", "http/1.1"])

    assert parse_client_hello(hello) == ClientHello("registry-1.docker.io", ("h2", "http/1.1"))


HOST = server_name(b"ghcr.io")

SNI = {
    "upper case is the same name": (server_name(b"GHCR.io"), "ghcr.io"),
    "a trailing dot is the same name": (server_name(b"ghcr.io."), "ghcr.io"),
    "no extension at all": (b"", None),
    "GREASE before and after": (extension(GREASE, b"\0") + HOST + extension(0xFAFA, b""), "ghcr.io"),
    "an IPv4 literal is no SNI": (server_name(b"192.0.2.1"), None),
    "a short IPv4 literal is no SNI": (server_name(b"127.1"), None),
    "an IPv6 literal is no SNI": (server_name(b"2001:db8::1"), None),
    "a name with NUL is no SNI": (server_name(b"ghcr.io\0.evil.example"), None),
    "a name with a slash is no SNI": (server_name(b"ghcr.io/v2"), None),
    "a name beyond ASCII is no SNI": (server_name("gh\N{CYRILLIC SMALL LETTER ES}r.io".encode()), None),
    "an empty label is no SNI": (server_name(b"ghcr..io"), None),
    "only a dot is no SNI": (server_name(b"."), None),
    "a label of 63 is a name": (server_name(b"a" * 63 + b".io"), "a" * 63 + ".io"),
    "a label of 64 is no SNI": (server_name(b"a" * 64 + b".io"), None),
    "254 bytes are no SNI": (server_name(b"a." * 126 + b"io"), None),
    "another name type is skipped": (server_name(b"ghcr.io", name_type=7), None),
}


@pytest.mark.parametrize(("extensions", "sni"), SNI.values(), ids=SNI.keys())
def test_the_server_name_is_normalised_or_none(extensions: bytes, sni: str | None) -> None:
    """N6: one spelling of a name, and no name where RFC 6066 allows none."""
    assert parse_client_hello(records(message(extensions))) == ClientHello(sni, ())


NOT_TLS = {
    "plain HTTP": b"GET / HTTP/1.1\r\n",
    "one byte of plain HTTP": b"G",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an SSLv2 hello": b"\x80\x2e\x01\x00\x02",
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "a major version other than 3": b"\x16\x02\x00\x00\x05",
    "another handshake message": b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
    "an empty record": b"\x16\x03\x01\x00\x00",
    "a record beyond 2^14": b"\x16\x03\x01\x40\x01",
    "a hello beyond the bound": b"\x16\x03\x01\x02\x00\x01\x01\x00\x00",
    "more records than any client sends": b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * 70,
    "an empty message": records(message(body=b"")),
    "a server_name twice": records(message(HOST, HOST)),
    "two host names": records(message(server_name(b"ghcr.io", b"quay.io"))),
    "an empty server_name": records(message(extension(0, b""))),
    "an empty host name": records(message(server_name(b""))),
    "bytes after the server names": records(message(extension(0, vector(2, b"\0\0\x01a") + b"x"))),
    "a length past the end": records(message(extension(0, b"\0\xff"))),
    "an empty protocol": records(message(alpn(b""))),
    "bytes after the extensions": records(
        message(
            body=b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + vector(1, b"\0") + b"\0\0x",
        )
    ),
    "a session id beyond 32": records(message(body=hello_body(session_id=bytes(33)))),
    "no cipher suites": records(message(body=hello_body(cipher_suites=b""))),
    "no compression methods": records(message(body=hello_body(compression_methods=b""))),
    "extensions that say more than there is": records(
        message(body=hello_body(b"\0\x09" + extension(GREASE, b"wxyz")))
    ),
    "extensions that say less than there is": records(
        message(body=hello_body(b"\0\x04" + extension(GREASE, b"wxyz")))
    ),
    "an extension that says more than there is": records(message(extension(GREASE, b"xyz")[:-1])),
    "half an extension's head": records(message(b"\x0a\x0a\0")),
}


@pytest.mark.parametrize("data", NOT_TLS.values(), ids=NOT_TLS.keys())
def test_what_cannot_be_a_hello_is_said_at_once(data: bytes) -> None:
    """N6: garbage goes on to where it was going, without waiting for more of it."""
    assert parse_client_hello(data) == NotTls()


def test_a_hello_without_extensions_is_a_hello() -> None:
    """RFC 8446 4.1.2: a client of old may end after the compression methods."""
    body = b"\x03\x01" + bytes(32) + b"\0" + vector(2, b"\x00\x2f") + vector(1, b"\0")

    assert parse_client_hello(records(message(body=body))) == ClientHello(None, ())


def test_a_slow_client_is_asked_for_whole_messages() -> None:
    """I8: one byte at a time costs three looks at a post-quantum hello, not two thousand."""
    hello = records(message(HOST, extension(KEY_SHARE, bytes(1800))))

    looks = [0]
    while isinstance(said := parse_client_hello(hello[: looks[-1]]), NeedMore):
        looks.append(said.at_least)
    assert said == ClientHello("ghcr.io", ())
    assert looks == [0, 9, len(hello)]


labels = st.from_regex(r"[a-z0-9_]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.builds(lambda name, top: f"{'.'.join(name)}.{top}", st.lists(labels, max_size=5), st.just("io"))
hellos = st.builds(
    lambda host, protocols, padding: (
        ClientHello(host.removeprefix("."), tuple(protocols)),
        message(
            extension(GREASE, b""),
            server_name(host.removeprefix(".").encode()),
            *([alpn(*(protocol.encode("latin-1") for protocol in protocols))] if protocols else []),
            extension(KEY_SHARE, bytes(padding)),
        ),
    ),
    hosts,
    st.lists(st.text(st.characters(max_codepoint=255), min_size=1, max_size=20), max_size=4),
    st.integers(0, 40_000),
)


@given(hellos, st.lists(st.integers(1, 50_000), max_size=20), st.data())
def test_any_split_says_the_same_and_any_beginning_asks_for_more(
    hello: tuple[ClientHello, bytes], cuts: list[int], data: st.DataObject
) -> None:
    """N6: several records and several segments; what is asked for is more than is there, never too much."""
    expected, handshake = hello
    sent = records(handshake, cuts)
    beginning = data.draw(st.integers(0, len(sent) - 1))

    assert parse_client_hello(sent) == expected
    assert parse_client_hello(sent + b"and what follows") == expected
    match parse_client_hello(sent[:beginning]):
        case NeedMore(at_least):
            assert beginning < at_least <= len(sent)
        case other:
            pytest.fail(f"{beginning} of {len(sent)} bytes said {other}")


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    """I8: hostile bytes get an answer."""
    parse_client_hello(data)


@given(hellos, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_damage_to_a_hello_makes_it_raise_or_ask_without_bound(
    hello: tuple[ClientHello, bytes], damage: list[tuple[int, int]]
) -> None:
    """I8: a hello with bytes changed gets an answer, and never asks for more than the bound."""
    sent = bytearray(records(hello[1]))
    for at, value in damage:
        sent[at % len(sent)] = value

    match parse_client_hello(bytes(sent)):
        case NeedMore(at_least):
            assert len(sent) < at_least <= MAX_HELLO_BYTES
        case ClientHello(sni):
            assert sni is None or sni == sni.lower()
