"""The pull checks of the OCI distribution specification, through the agent in four states.

Cold, warm, with the registry dark, and with the agent killed. The checks are those of the specification's
conformance suite, put in our words; the origin is Debian's docker-registry, which does not pass all of them:
where it does not, the agent either passes, or answers what the origin answers.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from lab import Agent, Artifact, HttpsAnswer, Lab, Node, Recorded, Registry, ask, replay, until
from lab.artifact import digest_of_bytes
from lab.image import INDEX, MANIFEST

ORIGIN = "https://registry-1.docker.io"
REPOSITORY = "library/checked"
TOKEN = f"https://auth.docker.io/token?service=registry.docker.io&scope=repository:{REPOSITORY}:pull"
TAGS = ("1", "2", "3")
SIZE = 2048
ARTIFACT = Artifact(
    name="checked",
    config_type="application/vnd.oci.image.config.v1+json",
    config="{}",
    layers=(("application/vnd.oci.image.layer.v1.tar", SIZE), ("application/vnd.oci.image.layer.v1.tar", 0)),
)
CONFIG, LAYER, EMPTY = ARTIFACT.blobs
ACCEPT = (("Accept", MANIFEST), ("Accept", INDEX))
MISSING = digest_of_bytes(b"nobody has this")
STATES = ("cold", "warm", "dark", "killed")
ABOUT_CONTENT = ("content-type", "content-length", "docker-content-digest", "content-range", "link")

Claim = Callable[[HttpsAnswer], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One request, and what the specification wants of its answer.

    `knowable` is false for what is missing, of which nothing is kept: in the dark an error is right then, in
    words.
    """

    path: str
    claim: Claim
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    knowable: bool = True


def manifest(method: str) -> Claim:
    """The manifest as it was pushed, or a description of it."""
    body = ARTIFACT.manifest if method == "GET" else b""

    def holds(answer: HttpsAnswer) -> bool:
        return (
            (answer.status, answer.body) == (200, body)
            and answer.header("Content-Type") == MANIFEST
            and answer.header("Content-Length") == str(len(ARTIFACT.manifest))
            and answer.header("Docker-Content-Digest") in ("", ARTIFACT.digest)
        )

    return holds


def whole(method: str, blob: bytes) -> Claim:
    body = blob if method == "GET" else b""

    def holds(answer: HttpsAnswer) -> bool:
        digest = answer.header("Docker-Content-Digest")
        return (
            (answer.status, answer.body) == (200, body)
            and answer.header("Content-Length") == str(len(blob))
            and digest in ("", digest_of_bytes(blob))
        )

    return holds


def part(first: int, last: int) -> Claim:
    """Those bytes as a 206, or the whole."""

    def holds(answer: HttpsAnswer) -> bool:
        ranges = (f"bytes {first}-{last}/{SIZE}", f"bytes {first}-{last}/*")
        is_part = (
            answer.status == 206
            and answer.body == LAYER[first : last + 1]
            and answer.header("Content-Range") in ranges
            and answer.header("Content-Length") == str(last - first + 1)
        )
        return is_part or whole("GET", LAYER)(answer)

    return holds


def unsatisfiable(answer: HttpsAnswer) -> bool:
    return answer.status == 416 or whole("GET", LAYER)(answer)


def status(*wanted: int) -> Claim:
    return lambda answer: answer.status in wanted


def tags(*names: str) -> Claim:
    return lambda answer: answer.status == 200 and json.loads(answer.body)["tags"] == list(names)


def referrers(answer: HttpsAnswer) -> bool:
    """An index, also where there is none."""
    return answer.status == 200 and answer.header("Content-Type") == INDEX


def by_range(text: str, claim: Claim) -> Check:
    return Check(path=f"blobs/{digest_of_bytes(LAYER)}", claim=claim, headers=(("Range", f"bytes={text}"),))


CHECKS: Mapping[str, Check] = {
    "ping": Check(path="", claim=status(200)),
    **{
        f"{method} manifest by {name}": Check(
            method=method, path=f"manifests/{reference}", claim=manifest(method), headers=ACCEPT
        )
        for name, reference in (("tag", "1"), ("digest", ARTIFACT.digest))
        for method in ("HEAD", "GET")
    },
    **{
        f"{method} {name}": Check(
            method=method, path=f"blobs/{digest_of_bytes(blob)}", claim=whole(method, blob)
        )
        for name, blob in (("config", CONFIG), ("layer", LAYER), ("empty blob", EMPTY))
        for method in ("HEAD", "GET")
    },
    "missing manifest by digest": Check(path=f"manifests/{MISSING}", claim=status(404), knowable=False),
    "missing manifest by tag": Check(path="manifests/absent", claim=status(404), knowable=False),
    "missing blob": Check(path=f"blobs/{MISSING}", claim=status(404), knowable=False),
    "malformed digest": Check(path="manifests/sha256:baddigeststring", claim=status(400, 404)),
    "malformed digest of a blob": Check(path="blobs/sha256:baddigeststring", claim=status(400, 404)),
    "range": by_range("500-1499", part(500, 1499)),
    "range from": by_range("500-", part(500, SIZE - 1)),
    "range of the end": by_range("-500", part(SIZE - 500, SIZE - 1)),
    "range past the end": by_range("2000-5000", part(2000, SIZE - 1)),
    "range backwards": by_range("500-0", unsatisfiable),
    "range beyond": by_range("5000-10000", unsatisfiable),
    "several ranges": by_range(
        "0-9,20-29", lambda answer: answer.status in (206, 416) or whole("GET", LAYER)(answer)
    ),
    "tags": Check(path="tags/list", claim=tags(*TAGS)),
    "tags, a page": Check(path="tags/list?n=2", claim=tags(*TAGS[:2])),
    "tags, the next": Check(path=f"tags/list?n=2&last={TAGS[1]}", claim=tags(*TAGS[2:])),
    "referrers": Check(path=f"referrers/{ARTIFACT.digest}", claim=referrers),
    "referrers of a kind": Check(
        path=f"referrers/{ARTIFACT.digest}?artifactType=application/x", claim=referrers
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The answers in each state, and those of the origin itself."""

    direct: Mapping[str, HttpsAnswer]
    by_state: Mapping[str, Mapping[str, HttpsAnswer]]


def answers(node: Node, token: str, names: Sequence[str] = tuple(CHECKS)) -> dict[str, HttpsAnswer]:
    asked = []
    for name in names:
        check = CHECKS[name]
        url = f"{ORIGIN}/v2/{REPOSITORY}/{check.path}" if check.path else f"{ORIGIN}/v2/"
        headers = (*check.headers, ("Authorization", f"Bearer {token}"))
        asked.append(Recorded(method=check.method, url=url, headers=headers))
    return dict(zip(names, replay(node, asked), strict=True))


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def same(answer: HttpsAnswer, other: HttpsAnswer) -> bool:
    """As far as a client of content can tell."""
    return (answer.status, answer.body) == (other.status, other.body) and all(
        answer.header(name) == other.header(name) for name in ABOUT_CONTENT if answer.header(name)
    )


def complaints(state: str, played: Mapping[str, HttpsAnswer], direct: Mapping[str, HttpsAnswer]) -> list[str]:
    """What neither passes its check nor is what the origin says."""
    found = []
    for name, answer in played.items():
        check, origin = CHECKS[name], direct[name]
        right = check.claim(answer) or (not check.claim(origin) and same(answer, origin))
        if state == "dark" and not check.knowable:
            right = right or (answer.status in (502, 503, 504) and "errors" in json.loads(answer.body))
        if not right:
            found.append(f"{name}: {answer.status} {dict(answer.headers)} {answer.body[:80]!r}")
    return found


def test_the_pull_checks_pass_in_every_state(lab: Lab, node: Node, registry: Registry) -> None:
    """C4, C7, C9, C10, C22, N4: cold, warm, dark and killed; the origin's own failings are its own."""
    for tag in TAGS:
        registry.publish_artifact(ARTIFACT, REPOSITORY, tag)
    node.install_trust()
    token = json.loads(ask(node, TOKEN).body)["token"]
    direct = answers(node, token)
    agent = node.start_agent().wait_steering()
    played = {"cold": answers(node, token), "warm": answers(node, token)}
    registry.goes_dark()
    played["dark"] = answers(node, token)
    registry.comes_back()
    with node.process(agent.pid) as process:
        agent.supervisor.kill(signal.SIGKILL)
        process.kill(signal.SIGKILL)
    until(lambda: answers(node, token, ["ping"])["ping"].cache == "", "pulls go direct", within_s=5)
    played["killed"] = answers(node, token)

    assert {state: complaints(state, played[state], direct) for state in STATES} == {
        state: [] for state in STATES
    }
    knowable = [name for name, check in CHECKS.items() if check.knowable and "malformed" not in name]
    assert {played["dark"][name].cache for name in knowable} <= {"hit", "stale"}
