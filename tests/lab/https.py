"""One HTTPS request from a host, by curl and its system trust store: what real clients do not show.

Clients print neither status nor header fields; scenarios about those ask here. Each request is a new process
and a new connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .host import Host

BODY = "/tmp/curl-body"


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
