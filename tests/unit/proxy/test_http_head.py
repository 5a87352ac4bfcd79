"""The host in a peeked HTTP/1 request: found when the head is whole, never guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.interception.client_hello import NeedMore
from tidegate_proxy.interception.http_head import MAX_HEAD_BYTES, HttpHead, NotHttp, parse_http_head

HEAD = b"HEAD /v2/a/manifests/1 HTTP/1.1\r\nAccept: */*\r\nHOST:  Registry.Local.:5000 \r\n\r\n"


def test_the_host_is_read_without_port_case_or_final_dot() -> None:
    """C24: RFC 9110, 7.2."""
    assert parse_http_head(HEAD) == HttpHead("registry.local")
    assert parse_http_head(HEAD + b"body: no field\r\n\r\n") == HttpHead("registry.local")


@pytest.mark.parametrize("length", range(len(HEAD)))
def test_every_beginning_of_a_head_wants_more(length: int) -> None:
    """C24: nothing is decided by a part."""
    assert parse_http_head(HEAD[:length]) == (NeedMore(length + 1) if length else NotHttp())


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",
        b"get / HTTP/1.1\r\n",
        b"GET http://registry.local/ HTTP/1.1\r\nHost: registry.local\r\n\r\n",
        b"CONNECT registry.local:443 HTTP/1.1\r\nHost: registry.local\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: registry.local\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: registry.local\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: registry.local\n\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_not_plainly_a_request_is_none(data: bytes) -> None:
    """C24, N6: it goes on untouched, so refusing to guess costs nobody anything."""
    assert parse_http_head(data) == NotHttp()


@given(st.binary(max_size=300) | st.binary(max_size=80).map(HEAD.__add__) | st.binary().map(b"GET /".__add__))
def test_nothing_makes_it_raise(data: bytes) -> None:
    """I1: whatever a client sends."""
    assert isinstance(parse_http_head(data), HttpHead | NeedMore | NotHttp)
