"""HTTPS requests from a host, by its system trust store: what real clients do not show.

Clients print neither status nor header fields; scenarios about those `ask` here, by curl: each request is a
new process and a new connection. `replay` sends requests as they were written down, on one connection a host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .host import Host

BODY = "/tmp/curl-body"
REPLAY = Path(__file__).with_name("replay.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsAnswer:
    """What came back; header names are in lower case, each with all its values."""

    status: int
    headers: Mapping[str, Sequence[str]]
    body: bytes = field(repr=False)

    def header(self, name: str) -> str:
        """The only value of a header field, or "" when there is none."""
        (value,) = self.headers.get(name.lower(), [""])
        return value

    @property
    def cache(self) -> str:
        """What X-Tidegate-Cache says: "" for an answer that did not come through an agent."""
        return self.header("X-Tidegate-Cache")


def ask(host: Host, url: str, *options: str) -> HttpsAnswer:
    """GET `url`, or what curl's `options` make of it. CommandFailed when there is no answer."""
    output = ["--output", BODY, "--write-out", "%{http_code} %{header_json}"]
    host.write(BODY, "")
    completed = host.run(["curl", "--silent", "--show-error", "--max-time", "20", *output, *options, url])
    status, _, headers = completed.or_raise().stdout.partition(" ")
    return HttpsAnswer(status=int(status), headers=json.loads(headers), body=host.path(BODY).read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A request to send as it stands; after `stop_after` bytes of the body the client hangs up."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    stop_after: int | None = None


def replay(host: Host, requests: Sequence[Recorded]) -> list[HttpsAnswer]:
    """Send these one after the other, following redirects; CommandFailed when one of them has no answer."""
    asked = [
        {
            "method": request.method,
            "url": request.url,
            "headers": request.headers,
            "stop_after": request.stop_after,
        }
        for request in requests
    ]
    # By its path, and nothing else of the package: imports would cost more than the requests.
    argv = [sys.executable, "-P", str(REPLAY)]
    completed = host.run(argv, stdin=json.dumps(asked).encode()).or_raise()
    answers = []
    for answer in json.loads(completed.stdout):
        headers: dict[str, list[str]] = {}
        for name, value in answer["headers"]:
            headers.setdefault(name, []).append(value)
        body = answer["body"].encode("latin-1")
        answers.append(HttpsAnswer(status=answer["status"], headers=headers, body=body))
    return answers
