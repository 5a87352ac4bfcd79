"""Which requests may be answered at once: exactly one plain head, read strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.http.plain_head import MAX_HEAD_BYTES, PlainHead, parse_plain_head

PLAIN = b"GET /v2/x HTTP/1.1\r\nHost: ghcr.io\r\nAccept: a\r\nAccept: b\r\n\r\n"


def test_a_plain_head_is_read() -> None:
    """C4."""
    assert parse_plain_head(PLAIN) == PlainHead("GET", "/v2/x", "ghcr.io", closes=False, open=True)


@pytest.mark.parametrize(
    ("connection", "version", "closes"),
    [(b"close", b"1.1", True), (b"keep-alive", b"1.1", False), (b"Close", b"1.1", True), (b"", b"1.0", True)],
)
def test_a_client_says_whether_it_wants_the_connection_closed(
    connection: bytes, version: bytes, closes: bool
) -> None:
    """RFC 9112 9.3."""
    line = b"Connection: " + connection + b"\r\n" if connection else b""
    head = parse_plain_head(b"HEAD / HTTP/" + version + b"\r\nHost: a\r\n" + line + b"\r\n")
    assert head == PlainHead("HEAD", "/", "a", closes=closes, open=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PLAIN[:-1],
        PLAIN + PLAIN,
        PLAIN + b"x",
        PLAIN.replace(b"GET", b"PUT"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/2.0"),
        PLAIN.replace(b"Host: ghcr.io\r\n", b""),
        PLAIN.replace(b"Accept: a", b"Host: ghcr.io"),
        PLAIN.replace(b"Accept: a", b"Content-Length: 0"),
        PLAIN.replace(b"Accept: a", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"Accept: a", b"Expect: 100-continue"),
        PLAIN.replace(b"Accept: a", b"Range: bytes=0-1"),
        PLAIN.replace(b"Accept: a", b"Upgrade: h2c"),
        PLAIN.replace(b"Accept: a", b"Connection: keep-alive, x"),
        PLAIN.replace(b"Accept: a", b" folded: a"),
        PLAIN.replace(b"Accept: a", b"Accept : a"),
        PLAIN.replace(b"Accept: a", b"Accept"),
        PLAIN.replace(b"Accept: a", b"Accept: \xc3\xa9"),
        PLAIN.replace(b"Accept: a\r\n", b"Accept: a\n"),
        PLAIN.replace(b"Accept: a\r\n", b"Accept: a\r"),
        PLAIN.replace(b"Accept: a", b"Accept: \0"),
        PLAIN.replace(b"/v2/x", b"/v2/x y"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Accept: a", b"Connection: keep-alive"),
        PLAIN.replace(b"Accept: a", b"Accept: " + b"a" * MAX_HEAD_BYTES),
    ],
)
def test_anything_else_is_for_the_full_server(data: bytes) -> None:
    """I1: what is not understood completely is not answered here."""
    assert parse_plain_head(data) is None


@given(
    st.binary(max_size=200)
    | st.builds(lambda a, b: PLAIN[:a] + b + PLAIN[a:], st.integers(0, 60), st.binary(max_size=4))
)
def test_no_bytes_raise(data: bytes) -> None:
    """I8: hostile bytes end in a value."""
    parse_plain_head(data)
