"""Heads at the CONNECT port: what is read, and what two readers could disagree about."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.central.request_head import (
    Authority,
    Connect,
    MalformedHead,
    Page,
    parse_authority,
    parse_head,
)

OWN_PORT = 3128


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join((line, *fields, "", "")).encode("latin-1")


def test_connect_names_a_host_and_a_port() -> None:
    """RFC 9110, 9.3.6: the authority counts, in lower case; Host may differ or be missing."""
    wanted = parse_head(
        head("CONNECT Quay.IO.:443 HTTP/1.1", "Host: other", "Via: 1.1 a", "via: 1.0 b"), own_port=OWN_PORT
    )

    assert wanted == Connect(to=Authority(host="quay.io", port=443), via="1.1 a, 1.0 b")
    assert parse_head(head("CONNECT [2001:DB8::1]:443 HTTP/1.0"), own_port=OWN_PORT) == Connect(
        to=Authority(host="2001:db8::1", port=443), via=""
    )


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("GET /ca.crt HTTP/1.1", Authority(host="central", port=3128)),
        ("GET /ca.crt?x=1 HTTP/1.1", Authority(host="central", port=3128)),
        ("GET http://10.0.0.1:3128/ca.crt HTTP/1.1", Authority(host="10.0.0.1", port=3128)),
    ],
)
def test_a_page_is_named_as_the_client_names_the_port(line: str, host: Authority) -> None:
    """T1: also where curl has a proxy for http, which makes its target absolute."""
    wanted = parse_head(head(line, "Host: central:3128"), own_port=OWN_PORT)

    assert wanted == Page(method="GET", path="/ca.crt", host=host, via="")


@pytest.mark.parametrize(
    "raw",
    [
        b"CONNECT quay.io:443 HTTP/1.1\n\n",
        b"CONNECT quay.io:443 HTTP/1.1\r\nHost: x\n\r\n\r\n",
        b"CONNECT quay.io:443 HTTP/1.1\r\nHost: x\r\r\n\r\n",
        b"G\nT / HTTP/1.1\r\n\r\n",
        b"G\rT / HTTP/1.1\r\n\r\n",
        head("CONNECT [1:2]:443 HTTP/1.1"),
        head("CONNECT quay.io HTTP/1.1"),
        head("CONNECT quay.io: HTTP/1.1"),
        head("CONNECT quay.io:0 HTTP/1.1"),
        head("CONNECT quay.io:65536 HTTP/1.1"),
        head("CONNECT https://quay.io:443 HTTP/1.1"),
        head("CONNECT user@quay.io:443 HTTP/1.1"),
        head("CONNECT quay.io:443 HTTP/2"),
        head("CONNECT  quay.io:443 HTTP/1.1"),
        head("CONNECT quay.io:443"),
        head("CONNECT quay.io:443 HTTP/1.1", "Content-Length: 5"),
        head("CONNECT quay.io:443 HTTP/1.1", "Transfer-Encoding: chunked"),
        head("CONNECT quay.io:443 HTTP/1.1", "Host : x"),
        head("CONNECT quay.io:443 HTTP/1.1", " folded"),
        head("CONNECT quay.io:443 HTTP/1.1", "Host: a", "Host: b"),
        head("CONNECT quay.io:443 HTTP/1.1", "X: a\0b"),
        head("GET http://example.org/ HTTP/1.1", "Host: example.org"),
        head("GET ftp://central:3128/ HTTP/1.1"),
        head("GET / HTTP/1.1", "Host: $(reboot)"),
        head("GET / HTTP/1.1", 'Host: a";b'),
    ],
)
def test_what_is_malformed_or_ambiguous_is_refused(raw: bytes) -> None:
    """RFC 9112, 2.2, 3.2, 5.1, 6.3; RFC 9110, 9.3.6: nothing is guessed."""
    with pytest.raises(MalformedHead):
        parse_head(raw, own_port=OWN_PORT)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_anything_else_of_it_than_a_value_or_a_refusal(noise: bytes, as_field: bool) -> None:
    """I8: whatever comes, nothing else is raised."""
    raw = b"CONNECT quay.io:443 HTTP/1.1\r\nX: " + noise + b"\r\n\r\n" if as_field else noise + b"\r\n\r\n"
    with contextlib.suppress(MalformedHead):
        assert isinstance(parse_head(raw, own_port=OWN_PORT), Connect | Page)


@given(st.text(max_size=60))
def test_an_authority_reads_back_and_means_nothing_to_a_shell(text: str) -> None:
    """T1: it stands in a script that root runs."""
    with contextlib.suppress(MalformedHead):
        authority = parse_authority(text, default_port=80)

        assert parse_authority(str(authority), default_port=None) == authority
        assert all(c.isascii() and (c.isalnum() or c in ".:-_[]") for c in str(authority))
