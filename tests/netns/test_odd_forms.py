"""Requests and answers of odd sizes and forms, through the agent: none of them may be answered otherwise than
the registry would, or end a connection that goes on without the agent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import pytest

from lab import Agent, Fault, HttpsAnswer, Lab, Node, Registry, ask
from lab.image import INDEX, MANIFEST

HOST = "registry-1.docker.io"
ORIGIN = f"https://{HOST}"
SINGLE = "docker.io/library/single:1"
TOKEN = "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/single:pull"
ACCEPT = ("--header", f"Accept: {MANIFEST}")
RAW = """
import socket, ssl, sys
tls = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
host = sys.argv[1]
with tls.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=host) as connection:
    connection.settimeout(15)
    connection.sendall(sys.argv[2].encode())
    while piece := connection.recv(65536):
        sys.stdout.buffer.write(piece)
"""
BLOB = "/v2/library/single/blobs"


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """What a pull left in the cache: the paths of a manifest and of a blob, with their digests."""

    manifest: str
    config: str
    config_digest: str
    layer: str
    layer_bytes: bytes


@pytest.fixture
def cached(lab: Lab, node: Node, agent: Agent) -> Cached:
    contents = lab.images[SINGLE].contents
    assert node.pull("skopeo", SINGLE).ok
    layer = f"/v2/library/single/blobs/{contents.layers[-1]}"
    return Cached(
        manifest=f"/v2/library/single/manifests/{contents.manifest}",
        config=f"/v2/library/single/blobs/{contents.config}",
        config_digest=contents.config,
        layer=layer,
        layer_bytes=ask(node, ORIGIN + layer).body,
    )


def raw(node: Node, *requests: str) -> str:
    """Everything that comes back for these requests, sent in one piece, until the connection is closed."""
    text = "".join(f"{request}\r\n\r\n" for request in requests)
    return node.run(["python3", "-c", RAW, HOST, text.replace("HOST", HOST)]).or_raise().stdout


# Conditions and ranges


@pytest.mark.parametrize("dark", [False, True])
def test_what_the_client_has_already_is_not_sent_again(
    node: Node, registry: Registry, cached: Cached, dark: bool
) -> None:
    """C4, C22: 304 with the ETag and no body (RFC 9110, 13.1.2); another one gets the content."""
    if dark:
        registry.goes_dark()
    tag = "/v2/library/single/manifests/1"
    for path in (cached.manifest, cached.layer, tag):
        etag = ask(node, ORIGIN + path, *ACCEPT).header("ETag")
        for known in (etag, f'"other", W/{etag}', "*"):
            answer = ask(node, ORIGIN + path, *ACCEPT, "--header", f"If-None-Match: {known}")
            assert (answer.status, answer.body, answer.header("ETag")) == (304, b"", etag)
            assert answer.cache in ("hit", "revalidated", "stale")
        other = ask(node, ORIGIN + path, *ACCEPT, "--header", 'If-None-Match: "other"')
        assert other.status == 200
        assert other.body
    both = ask(
        node, ORIGIN + cached.layer, "--range", "0-9", "--header", f"If-None-Match: {_etag(cached.layer)}"
    )
    assert both.status == 304, "RFC 9110, 13.2.2: before the range"


def test_a_head_knows_no_range(node: Node, cached: Cached) -> None:
    """C9, C10: Range is for GET alone (RFC 9110, 14.2)."""
    answer = ask(node, ORIGIN + cached.layer, "--head", "--header", "Range: bytes=0-9")

    assert (answer.status, answer.header("Content-Length")) == (200, str(len(cached.layer_bytes)))


def test_accept_with_weights_finds_the_cached_manifest(
    node: Node, registry: Registry, cached: Cached
) -> None:
    """C4, C7: q-values order what is accepted; a q of 0 refuses it (RFC 9110, 12.4.2)."""
    registry.goes_dark()
    url = f"{ORIGIN}/v2/library/single/manifests/1"

    weighted = ask(node, url, "--header", f"Accept: {INDEX};q=0.9, {MANIFEST};q=0.1")
    refused = ask(node, url, "--header", f"Accept: {MANIFEST};q=0, {INDEX}")

    assert (weighted.status, weighted.header("Content-Type")) == (200, MANIFEST)
    assert refused.status == 502


# Connections


def test_requests_that_come_before_their_turn_are_answered_in_theirs(node: Node, cached: Cached) -> None:
    """N3: pipelined (RFC 9112, 9.3.2), in one piece, cached manifests and blobs in turn."""
    paths = (cached.manifest, cached.config, cached.manifest)
    requests = [f"GET {path} HTTP/1.1\r\nHost: HOST" for path in paths]
    last = f"HEAD {cached.layer} HTTP/1.1\r\nHost: HOST\r\nConnection: close"

    came = raw(node, *requests, last)

    digests = [
        line.partition(": ")[2] for line in came.splitlines() if line.startswith("Docker-Content-Digest")
    ]
    assert digests == [path.rpartition("/")[2] for path in (*paths, cached.layer)]
    assert came.count("HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("path", ["manifest", "config"])
def test_a_client_of_http_1_0_gets_its_answer_and_the_end(node: Node, cached: Cached, path: str) -> None:
    """N3: Content-Length or the close ends a body, never chunks."""
    asked = getattr(cached, path)

    head, _, body = raw(node, f"GET {asked} HTTP/1.0\r\nHost: HOST").replace("\r\n", "\n").partition("\n\n")

    assert " 200 OK" in head.splitlines()[0]
    assert "chunked" not in head
    digest = asked.rpartition(":")[2]
    assert hashlib.sha256(body.encode()).hexdigest() == digest


def test_who_waits_for_a_100_gets_it(node: Node, cached: Cached) -> None:
    """N3: Expect: 100-continue, on a read (RFC 9110, 10.1.1)."""
    came = raw(
        node, f"GET {cached.config} HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nConnection: close"
    )

    assert came.startswith("HTTP/1.1 100 Continue")
    assert "HTTP/1.1 200 OK" in came


@pytest.mark.parametrize("path", ["manifest", "config"])
def test_a_second_host_is_refused(node: Node, cached: Cached, path: str) -> None:
    """I7: two Host fields are a 400 (RFC 9112, 3.2), or another reader may see another registry."""
    asked = getattr(cached, path)

    came = raw(node, f"GET {asked} HTTP/1.1\r\nHost: HOST\r\nHost: quay.io\r\nConnection: close")

    assert came.split()[1] in ("400", "421")


# Sizes


SHAPES = {"one": (1, 64_000), "some": (64, 1_000), "many": (500, 128)}


def fields(shape: str) -> dict[str, str]:
    """64 KB of header fields, as single sign-on proxies make them."""
    count, length = SHAPES[shape]
    return {f"X-{number}": "a" * length for number in range(count)}


@pytest.mark.parametrize("path", ["manifest", "tag"])
@pytest.mark.parametrize("shape", ["one", pytest.param("some", marks=pytest.mark.slow), "many"])
def test_64_kb_of_header_fields_from_a_client(node: Node, cached: Cached, path: str, shape: str) -> None:
    """I8, N3: in one field or in hundreds, and the answer is that to a request without them."""
    asked = "/v2/library/single/manifests/1" if path == "tag" else cached.manifest
    sent = [part for name, value in fields(shape).items() for part in ("--header", f"{name}: {value}")]

    answer = ask(node, ORIGIN + asked, *ACCEPT, *sent)

    assert answer.status == 200
    assert answer.cache in ("hit", "revalidated")


@pytest.mark.parametrize("on", ["manifest", "other"])
@pytest.mark.parametrize("shape", ["one", pytest.param("some", marks=pytest.mark.slow), "many"])
def test_64_kb_of_header_fields_from_a_registry(
    node: Node, registry: Registry, agent: Agent, on: str, shape: str
) -> None:
    """I8, C3: cached or passed through, its answer is usable."""
    large = fields(shape)
    registry.fault(Fault(on=on, headers=large, times=None))  # type: ignore[arg-type]  # parametrized
    path = "manifests/1" if on == "manifest" else "tags/list"
    token = json.loads(ask(node, TOKEN).body)["token"]

    answer = ask(
        node,
        f"{ORIGIN}/v2/library/single/{path}",
        *ACCEPT,
        "--header",
        f"Authorization: Bearer {token}",
    )

    assert answer.status == 200
    assert answer.header("X-0") == ("" if on == "manifest" else large["X-0"])


def scripted(node: Node, registry: Registry, path: str, body: str, **headers: str) -> HttpsAnswer:
    """The registry's own answer to that, from now on, and as it comes through the agent."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    registry.fault(
        Fault(on="any", matching=f"{HOST}/v2/{path}", times=None, status=200, headers=fields, body=body)
    )
    return ask(node, f"{ORIGIN}/v2/{path}", *ACCEPT)


def index_of(entries: int, filler: int = 0) -> str:
    """An index of that many manifests."""
    listed = [
        {"mediaType": MANIFEST, "digest": f"sha256:{number:064x}", "size": 1} for number in range(entries)
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    return json.dumps({**index, "annotations": {"filler": "x" * filler}})


@pytest.mark.parametrize(("entries", "filler"), [(1, 5_000_000), (10_000, 0)], ids=["5 MB", "10,000 entries"])
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_a_large_manifest_arrives_whole(
    node: Node, registry: Registry, agent: Agent, entries: int, filler: int, by: str
) -> None:
    """I1, I8, C22: up to 4 MiB it is cached, beyond that it passes through, verified (4 MiB is what the
    specification expects a registry to take)."""
    body = index_of(entries, filler)
    digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    reference = "1" if by == "tag" else digest
    fields = {"Content_Type": INDEX, "Docker_Content_Digest": digest}

    answers = [
        scripted(node, registry, f"library/odd/manifests/{reference}", body, **fields) for _ in range(2)
    ]

    assert [(answer.status, answer.body) for answer in answers] == [(200, body.encode())] * 2
    assert [answer.header("Content-Type") for answer in answers] == [f"{INDEX}; charset=utf-8"] * 2
    assert answers[1].cache == ("bypass" if filler else "revalidated" if by == "tag" else "hit")


@pytest.mark.parametrize(
    "link", ["/v2/library/odd/tags/list?n=9999&last=t%2F1", f"{ORIGIN}/v2/library/odd/tags/list"]
)
def test_ten_thousand_tags_and_the_way_to_the_next_page(
    node: Node, registry: Registry, agent: Agent, link: str
) -> None:
    """C22: the Link to the next page is the registry's own, to the letter, relative or absolute."""
    body = json.dumps({"name": "library/odd", "tags": [f"tag-{number}" for number in range(10_000)]})

    answer = scripted(node, registry, "library/odd/tags/list", body, Link=f'<{link}>; rel="next"')

    assert (answer.status, answer.body.decode()) == (200, body)
    assert answer.header("Link") == f'<{link}>; rel="next"'


@pytest.mark.parametrize("name", ["a" * 255, "/".join(["part"] * 50)])
def test_long_names_and_tags(node: Node, registry: Registry, agent: Agent, name: str) -> None:
    """C1, C22: a repository of 255 characters and a tag of 128."""
    reference = "t" * 128
    body = index_of(1)
    digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    path = f"{name}/manifests/{reference}"

    cold = scripted(node, registry, path, body, Content_Type=INDEX, Docker_Content_Digest=digest)
    warm = ask(node, f"{ORIGIN}/v2/{path}", *ACCEPT, "--header", f"Accept: {INDEX}")

    assert (cold.status, warm.status, warm.body.decode()) == (200, 200, body)


# Cookies


def test_cookies_stay_between_one_client_and_the_registry(
    node: Node, registry: Registry, cached: Cached
) -> None:
    """C15, I6: none is kept, sent on by the agent itself, or given to another client with a cached answer."""
    registry.fault(Fault(on="any", headers={"Set-Cookie": "session=alices"}, times=None))
    mine = ("--header", "Cookie: session=mine")
    ping = ask(node, f"{ORIGIN}/v2/", *mine)
    assert ping.header("Set-Cookie") == "session=alices", (
        "what passes through is the client's and the registry's"
    )
    assert registry.requests_for("ping")[-1].header("Cookie") == ["session=mine"]
    registry.forget()

    tag = f"{ORIGIN}/v2/library/small/manifests/1"
    urls = (tag, tag, ORIGIN + cached.manifest, ORIGIN + cached.layer)
    answers = [ask(node, url, *mine, *ACCEPT, "--header", f"Accept: {INDEX}") for url in urls]

    assert [answer.header("Set-Cookie") for answer in answers] == [""] * 4
    asked = registry.requests
    assert asked
    assert [request.header("Cookie") for request in asked if request.header("Cookie")] == []


def _etag(path: str) -> str:
    return f'"{path.rpartition("/")[2]}"'
