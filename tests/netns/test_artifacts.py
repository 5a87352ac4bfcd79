"""Clients that Debian does not package: the agent answers their requests as the registry does.

`fixtures/` holds what helm, oras, cosign and BuildKit send, written down from their sources: methods, paths,
header fields as spelled there, and where they stop reading. Each list is replayed in order on kept-alive
connections: directly, through the agent with nothing cached, again, and in the dark. And what clients that
speak HTTP/2 find.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import (
    Agent,
    Artifact,
    Fault,
    HttpsAnswer,
    Lab,
    Node,
    Recorded,
    Registry,
    Resolver,
    ask,
    replay,
    until,
)
from lab.image import INDEX

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.json"))
ORIGIN = "https://registry-1.docker.io"
TOKEN = "https://auth.docker.io/token?service=registry.docker.io&scope=repository:{}:pull"
ABOUT_CONTENT = ("content-type", "content-length", "docker-content-digest", "link", "oci-filters-applied")
ABOUT_BYTES = ("content-length", "content-range")  # of a blob: the other fields are the blob host's own
REFERRERS = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one client sends; `cached` are the places of those requests that the cache can answer."""

    artifact: Artifact
    repository: str
    tag: str
    requests: tuple[Recorded, ...]
    cached: frozenset[int]


def session(fixture: Path, lab: Lab, node: Node) -> Session:
    """Publish the fixture's artifact, and fill in its names, digests and a token."""
    recorded = json.loads(fixture.read_text())
    described = recorded["artifact"]
    layers = tuple((media_type, size) for media_type, size in described["layers"])
    artifact = Artifact(
        name=fixture.stem,
        config_type=described["config_type"],
        config=described["config"],
        layers=layers,
        more=described["more"],
    )
    subject = lab.images["docker.io/library/small:1"].digest.replace(":", "-")
    config, *contents = artifact.blob_digests
    names = {
        "repository": recorded["repository"],
        "signature_tag": f"{subject}.sig",
        "attestation_tag": f"{subject}.att",
        "referrers_tag": artifact.digest.replace(":", "-"),
        "manifest": artifact.digest,
        "config": config,
        **{f"layer{number}": digest for number, digest in enumerate(contents)},
    }
    names["tag"] = recorded["tag"].format(**names)
    lab.registry.publish_artifact(artifact, names["repository"], names["tag"])
    token = json.loads(ask(node, TOKEN.format(names["repository"])).body)["token"]
    return Session(
        artifact=artifact,
        repository=names["repository"],
        tag=names["tag"],
        requests=tuple(
            Recorded(
                method=request["method"],
                url=ORIGIN + request["path"].format(**names),
                headers=(*map(tuple, request["headers"]), ("Authorization", f"Bearer {token}")),
                stop_after=request.get("stop_after"),
            )
            for request in recorded["requests"]
        ),
        cached=frozenset(
            number for number, request in enumerate(recorded["requests"]) if request.get("cached")
        ),
    )


def differences(request: Recorded, direct: HttpsAnswer, through: HttpsAnswer) -> list[str]:
    """What a client would notice between two answers to one request."""
    is_blob = "/blobs/" in request.url and request.method == "GET"
    found = [
        f"{name}: {direct.headers.get(name)} became {through.headers.get(name)}"
        for name in (ABOUT_BYTES if is_blob else ABOUT_CONTENT)
        if direct.headers.get(name) != through.headers.get(name)
    ]
    if direct.status != through.status:
        found.append(f"status: {direct.status} became {through.status}")
    if direct.body != through.body:
        found.append("other bytes")
    return [f"{request.method} {request.url}: {what}" for what in found]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_an_artifacts_client_gets_the_registrys_own_answers(
    lab: Lab, node: Node, registry: Registry, fixture: Path
) -> None:
    """N3, C9, C10, C22: cold and warm; what was cached is the same in the dark, and nobody is asked."""
    client = session(fixture, lab, node)
    direct = replay(node, client.requests)
    assert {answer.cache for answer in direct} == {""}
    node.install_trust()
    node.start_agent().wait_steering()

    cold, warm = replay(node, client.requests), replay(node, client.requests)

    for through in (cold, warm):
        for request, own, answer in zip(client.requests, direct, through, strict=True):
            assert answer.cache
            assert differences(request, own, answer) == []
    assert {warm[number].cache for number in client.cached} <= {"hit", "revalidated"}
    registry.goes_dark()
    registry.forget()
    numbers = sorted(client.cached)
    dark = replay(node, [client.requests[number] for number in numbers])
    for number, answer in zip(numbers, dark, strict=True):
        assert differences(client.requests[number], direct[number], answer) == []
    assert registry.connections == []


def test_a_registrys_list_of_referrers_arrives_with_its_filter(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C22: a registry that has the referrers API (the lab's has not) is asked each time, query and all."""
    digest = lab.images["docker.io/library/small:1"].digest
    listed = Fault(
        on="other",
        matching=rf"GET registry-1\.docker\.io/v2/library/small/referrers/{digest}"
        r"\?artifactType=application%2Fspdx%2Bjson$",
        times=None,
        status=200,
        headers={"Content-Type": INDEX, "OCI-Filters-Applied": "artifactType"},
        body=REFERRERS,
    )
    registry.fault(listed)
    url = f"{ORIGIN}/v2/library/small/referrers/{digest}?artifactType=application%2Fspdx%2Bjson"
    request = Recorded(method="GET", url=url, headers=(("Accept", INDEX),))
    (direct,) = replay(node, [request])
    assert (direct.status, direct.header("oci-filters-applied")) == (200, "artifactType")
    node.install_trust()
    node.start_agent().wait_steering()
    registry.forget()

    answers = replay(node, [request, request])

    assert [differences(request, direct, answer) for answer in answers] == [[], []]
    assert [answer.cache for answer in answers] == ["bypass", "bypass"]
    assert len(registry.requests_for("other")) == 2


def test_that_a_repository_has_a_blob_is_the_registrys_word(lab: Lab, node: Node, registry: Registry) -> None:
    """C9, I1: who pushes asks by HEAD what it need not send; what the cache holds is another repository's."""
    node.install_trust()
    node.start_agent().wait_steering()
    layer = lab.images["docker.io/library/single:1"].contents.layers[1]
    assert node.pull("skopeo", "docker.io/library/single:1").ok
    assert node.pull("skopeo", "docker.io/library/small:1").ok
    theirs, others = (f"{ORIGIN}/v2/library/{name}/blobs/{layer}" for name in ("single", "small"))

    assert ask(node, theirs, "--head").status == 200
    assert ask(node, others, "--head").status == 404

    registry.goes_dark()
    assert ask(node, theirs, "--head").status == 200


# HTTP/2

H2_HOST = "h2.example.org"
H2_CONFIG = f"""
[[registry]]
name = "h2.example.org"
hosts = ["{H2_HOST}"]
"""
H2_CERTIFICATE, H2_KEY = "/etc/lab/h2.crt", "/etc/lab/h2.key"
SHAKE_HANDS = """
import socket, ssl, sys
host, *protocols = sys.argv[1:]
tls = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
if protocols:
    tls.set_alpn_protocols(protocols)
with tls.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=host) as connection:
    issuer = dict(pair for (pair,) in connection.getpeercert()["issuer"])["commonName"]
    connection.sendall(f"GET /v2/ HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    print(issuer, connection.selected_alpn_protocol(), answer.split()[1].decode(), sep="|")
"""
ORIGINS_CA = "Lab Internet CA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """Whose certificate came, which protocol was agreed on, and the status of a request sent all the same."""

    issuer: str
    protocol: str
    status: int


def shake_hands(node: Node, *protocols: str) -> Handshake:
    """Offer these protocols, in this order (RFC 7301), to the origin that speaks HTTP/2."""
    output = node.python(SHAKE_HANDS, H2_HOST, *protocols).or_raise().stdout
    issuer, protocol, status = output.strip().split("|")
    return Handshake(issuer=issuer, protocol=protocol, status=int(status))


@pytest.fixture
def h2_agent(lab: Lab, node: Node, resolver: Resolver) -> Iterator[Agent]:
    """An agent that steers a registry whose origin agrees to h2, before http/1.1."""
    origin = lab.add_node("origin")
    server = lab.authority.server([H2_HOST])
    origin.write(H2_CERTIFICATE, server.certificate)
    origin.write(H2_KEY, server.key, mode=0o600)
    resolver.answer(records={H2_HOST: [interface.ip for interface in origin.interfaces]})
    listener = ["openssl", "s_server", "-accept", "443", "-alpn", "h2,http/1.1", "-quiet", "-www"]
    with origin.spawn([*listener, "-cert", H2_CERTIFICATE, "-key", H2_KEY], log="h2"):
        until(lambda: 443 in origin.listening(), "the origin listens")
        assert shake_hands(node, "h2", "http/1.1") == Handshake(issuer=ORIGINS_CA, protocol="h2", status=200)
        agent = node.start_agent(H2_CONFIG)
        node.install_trust()  # after the start: of an authority for the hosts of this configuration
        yield agent.wait_steering()


def spliced(agent: Agent) -> float:
    connections = agent.metrics()
    return sum(count for name, count in connections.items() if 'outcome="spliced"' in name)


@pytest.mark.parametrize("offered", [(), ("http/1.1",), ("h2", "http/1.1"), ("h2", "http/1.1", "http/1.0")])
def test_a_client_that_knows_http_1_1_too_falls_back_to_it(
    node: Node, h2_agent: Agent, offered: tuple[str, ...]
) -> None:
    """N3: the origin would agree to h2; the agent, whose certificate this is, speaks HTTP/1.1."""
    handshake = shake_hands(node, *offered)

    assert handshake.issuer not in ("", ORIGINS_CA)
    assert handshake.protocol == ("http/1.1" if offered else "None")
    assert spliced(h2_agent) == 0


def test_a_client_that_speaks_only_http_2_reaches_the_origin_itself(node: Node, h2_agent: Agent) -> None:
    """N3, I1: nothing that it offers is ours to speak, so its connection goes on untouched."""
    assert shake_hands(node, "h2") == Handshake(issuer=ORIGINS_CA, protocol="h2", status=200)

    assert spliced(h2_agent) == 1


def test_curl_with_http_2_is_answered_from_the_cache(lab: Lab, node: Node, registry: Registry) -> None:
    """N3: a client that prefers HTTP/2 is served like any other."""
    node.install_trust()
    node.start_agent().wait_steering()
    blob = lab.images["docker.io/library/single:1"].contents.config
    url = f"{ORIGIN}/v2/library/single/blobs/{blob}"
    cold = ask(node, url, "--http2", "--location")

    warm = ask(node, url, "--http2")

    assert (cold.status, cold.cache) == (200, "miss")
    assert (warm.status, warm.cache) == (200, "hit")
    assert warm.body == cold.body
    version = node.run(["curl", "-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version}", url])
    assert version.or_raise().stdout == "1.1"
