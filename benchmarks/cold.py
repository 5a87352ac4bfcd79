"""A cold blob through the agent against the same blob straight from the registry: wall time and first byte.

Run it with `.venv/bin/python benchmarks/cold.py [--rounds N]`, as root. Two nodes take turns, one with the
agent and one without; the origin is behind a link of 100 MB/s first, then as fast as it is. The client is the
same: it has a token, asks the registry, follows the redirect and reads to the end. Between rounds the blob is
removed from the agent's store.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field

from comparison import Report, Row, Target, at_most
from origin import REGISTRY, ColdBlob, limit, publish, sent_bytes, token, unlimit
from peer import Agent, Lab, Node, cpu_seconds, require, until

BLOB_BYTES = 256 << 20

CLIENT = """
import http.client, json, ssl, sys, time
from urllib.parse import urljoin, urlsplit

url, token = sys.argv[1:]
context = ssl.create_default_context()
buffer = memoryview(bytearray(1 << 18))
began = time.perf_counter()
headers = {"Authorization": f"Bearer {token}"}
while True:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.netloc, context=context, timeout=60)
    connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
    answer = connection.getresponse()
    if answer.status not in (301, 302, 303, 307, 308):
        break
    url, headers = urljoin(url, answer.headers["Location"]), {}
    connection.close()
size = len(answer.read1(1))  # readinto would wait for as much as fits
first = time.perf_counter() - began
while got := answer.readinto(buffer):
    size += got
cache = answer.headers.get("X-Tidegate-Cache", "")
print(json.dumps([answer.status, size, cache, first, time.perf_counter() - began]))
"""


@dataclass(slots=True)
class Way:
    """Through the agent or direct, and what was measured there."""

    name: str
    node: Node
    cache: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)
        print(f"  {self.name:8} {name}: {value:,.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    require("openssl")
    with Lab() as lab:
        agent, ways = start(lab)
        blob = publish(lab, "cold", BLOB_BYTES)
        for way in ways:  # names, the repository's publicness, bytecode: what no first pull of a day pays
            fetch(way, publish(lab, "warmup", 1 << 20))
        for name, link in (("at 100 MB/s", limit), ("unlimited", None)):
            if link is not None:
                link(lab)
            for number in range(options.rounds):
                print(f"{name}, round {number + 1} of {options.rounds}")
                for way in ways if number % 2 == 0 else ways[::-1]:
                    one_round(lab, way, agent, blob, name)
            if link is not None:
                unlimit(lab)
    report = Report(benchmark="cold", rounds=options.rounds)
    through, direct = ways
    for what, unit, target in ROWS:
        report.add(
            Row(
                what=what,
                unit=unit,
                tidegate=through.figures[what],
                peer=direct.figures.get(what, ()),
                peer_name="direct" if what in direct.figures else "",
                target=target,
            )
        )
    report.finish()


ROWS: tuple[tuple[str, str, Target | None], ...] = (
    ("256 MiB at 100 MB/s, wall time", "s", at_most(1.10)),
    ("256 MiB at 100 MB/s, first byte", "s", at_most(1.2)),
    ("256 MiB at 100 MB/s, the agent's CPU", "s/GB", None),
    ("256 MiB unlimited, wall time", "s", None),
    ("256 MiB unlimited, first byte", "s", None),
    ("256 MiB unlimited, the agent's CPU", "s/GB", None),
)


def start(lab: Lab) -> tuple[Agent, list[Way]]:
    node, direct = lab.node, lab.add_node("direct")
    node.install_trust()
    agent = node.start_agent().wait_steering()
    return agent, [Way("tidegate", node, "miss"), Way("direct", direct, "")]


def one_round(lab: Lab, way: Way, agent: Agent, blob: ColdBlob, name: str) -> None:
    lab.registry.forget()
    stored = way.node.path(f"/var/lib/tidegate/blobs/sha256/{blob.encoded[:2]}/{blob.encoded}")
    stored.unlink(missing_ok=True)
    before = cpu_seconds(way.node, [agent.pid]) if way.cache else 0.0
    first, wall = fetch(way, blob)
    way.note(f"256 MiB {name}, wall time", wall)
    way.note(f"256 MiB {name}, first byte", first)
    if way.cache:
        until(stored.exists, "the blob is stored")
        used = cpu_seconds(way.node, [agent.pid]) - before
        way.note(f"256 MiB {name}, the agent's CPU", used / (blob.size_bytes / 1e9))
    if sent_bytes(lab, blob) != (1, blob.size_bytes):
        raise SystemExit(f"the registry sent the blob {sent_bytes(lab, blob)} times and bytes")


def fetch(way: Way, blob: ColdBlob) -> tuple[float, float]:
    """Seconds to the first byte and to the last."""
    done = way.node.python(CLIENT, f"https://{REGISTRY}{blob.path}", token(way.node, blob.repository))
    status, size, cache, first, wall = json.loads(done.or_raise().stdout)
    if (status, size, cache) != (200, blob.size_bytes, way.cache):
        raise SystemExit(f"{way.name} was not served as expected: {status}, {size} bytes, {cache!r}")
    return first, wall


if __name__ == "__main__":
    main()
