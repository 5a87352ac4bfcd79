"""Many clients of one cold blob: what the registry sends, when the last client is done, when bytes come.

Run it with `.venv/bin/python benchmarks/herd.py [--rounds N]`, as root. The agent, nginx with
proxy_cache_lock and Debian's docker-registry as a pull-through cache each get the same herd, in turn, at a
blob that is new to all; the origin is behind a link of 100 MB/s and serves blobs itself, because nginx
follows no redirects. The yardstick is one client that downloads the same blob straight from the registry. The
herd is one curl process with as many connections as clients, for all alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from caches import CachingNginx, DockerRegistry
from comparison import Report, Row, Target, at_most
from origin import REGISTRY, ColdBlob, limit, publish, sent_bytes, token
from peer import Agent, Lab, Node, cpu_seconds, require

PORT = 9443
HERDS = ((8, 128 << 20), (100, 16 << 20))
FORM = (
    '{"status": %{http_code}, "bytes": %{size_download}, '
    '"first": %{time_starttransfer}, "last": %{time_total}}\\n'
)


class Cache(Protocol):
    """Where a herd goes."""

    @property
    def name(self) -> str: ...
    @property
    def node(self) -> Node: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def pids(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Tidegate:
    """The agent, reached by the registry's name and through its rules."""

    node: Node
    agent: Agent
    name: str = "tidegate"
    host: str = REGISTRY
    port: int = 443

    @property
    def pids(self) -> list[int]:
        return [self.agent.pid]


@dataclass(slots=True)
class Figures:
    """Samples of one contestant, by name."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, who: str, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)
        print(f"  {who:9} {name}: {value:,.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clients", type=int, choices=[clients for clients, _ in HERDS], help="one herd alone"
    )
    options = parser.parse_args()
    require("nginx", "openssl")
    herds = [each for each in HERDS if options.clients in (None, each[0])]
    with Lab() as lab:
        lab.registry.serve_blobs_itself()
        lab.node.install_trust()
        caches: list[Cache] = [
            Tidegate(lab.node, lab.node.start_agent().wait_steering()),
            CachingNginx(lab.add_node("nginx"), PORT),
            DockerRegistry(lab.add_node("mirror"), PORT),
        ]
        direct = lab.add_node("direct")
        figures = {cache.name: Figures() for cache in caches} | {"direct": Figures()}
        for cache in caches:  # names, publicness, bytecode
            herd(cache, 1, publish(lab, "warmup", 1 << 20))
        limit(lab)
        for number in range(options.rounds):
            for clients, size_bytes in herds:
                print(f"{clients} clients, round {number + 1} of {options.rounds}")
                with published(lab, f"herd{clients}round{number}", size_bytes, caches) as blob:
                    alone = straight(direct, blob)
                    figures["direct"].note("direct", done(clients), alone)
                    for cache in caches[number % 3 :] + caches[: number % 3]:
                        one_herd(lab, cache, clients, blob, figures[cache.name])
    report(figures, herds, options.rounds)


def done(clients: int) -> str:
    return f"{clients} clients, last one done"


def one_herd(lab: Lab, cache: Cache, clients: int, blob: ColdBlob, figures: Figures) -> None:
    lab.registry.forget()
    before = cpu_seconds(cache.node, cache.pids)
    answers = herd(cache, clients, blob)
    used = cpu_seconds(cache.node, cache.pids) - before
    transfers, sent = sent_bytes(lab, blob)
    figures.note(cache.name, done(clients), max(answer["last"] for answer in answers))
    figures.note(
        cache.name, f"{clients} clients, first byte at the median", median(a["first"] for a in answers)
    )
    figures.note(cache.name, f"{clients} clients, first byte of the last", max(a["first"] for a in answers))
    figures.note(cache.name, f"{clients} clients, transfers from the registry", transfers)
    figures.note(cache.name, f"{clients} clients, sent by the registry", sent / blob.size_bytes)
    figures.note(cache.name, f"{clients} clients, CPU", used / (clients * blob.size_bytes / 1e9))


def report(figures: dict[str, Figures], herds: list[tuple[int, int]], rounds: int) -> None:
    result = Report(benchmark="herd", rounds=rounds)
    ours = figures["tidegate"].samples
    for clients, size_bytes in herds:
        blob = f"{size_bytes >> 20} MiB"
        target: Target | None = at_most(1.15) if clients == 8 else None
        rows: list[tuple[str, str, str, Target | None]] = [
            ("last one done", "s", "direct", target),
            ("last one done", "s", "nginx", None),
            ("last one done", "s", "registry", None),
            ("first byte at the median", "s", "nginx", None),
            ("first byte at the median", "s", "registry", None),
            ("first byte of the last", "s", "nginx", None),
            ("first byte of the last", "s", "registry", None),
            ("transfers from the registry", "", "nginx", None),
            ("transfers from the registry", "", "registry", None),
            ("sent by the registry", "x the blob", "nginx", None),
            ("sent by the registry", "x the blob", "registry", None),
            ("CPU", "s/GB", "nginx", None),
            ("CPU", "s/GB", "registry", None),
        ]
        for what, unit, peer, bound in rows:
            name = f"{clients} clients, {what}"
            result.add(
                Row(
                    what=f"{clients} clients of {blob}, {what}",
                    unit=unit,
                    tidegate=ours[name],
                    peer=figures[peer].samples[name],
                    peer_name=peer,
                    target=bound,
                )
            )
    result.finish()


@contextmanager
def published(lab: Lab, name: str, size_bytes: int, caches: list[Cache]) -> Iterator[ColdBlob]:
    """A blob that is new to everybody; memory is what it and its copies take, so they go afterwards."""
    blob = publish(lab, name, size_bytes)
    yield blob
    for cache in caches:
        cache.node.run(["find", "/srv", "/var/lib/tidegate/blobs", "-type", "f", "-size", "+8M", "-delete"])
    lab.internet.run(["find", "/srv", "-path", f"*{blob.encoded}*", "-type", "f", "-size", "+8M", "-delete"])


def straight(node: Node, blob: ColdBlob) -> float:
    """Seconds that one client without any cache needs."""
    login = ["--header", f"Authorization: Bearer {token(node, blob.repository)}"]
    (answer,) = _curl(node, [f"https://{REGISTRY}{blob.path}"], blob, *login)
    return answer["last"]


def herd(cache: Cache, clients: int, blob: ColdBlob) -> list[dict[str, float]]:
    """What each client saw."""
    login = []
    if cache.name != "registry":  # which gets its own, and takes none
        login = ["--header", f"Authorization: Bearer {token(cache.node, blob.repository)}"]
    urls = [f"https://{cache.host}:{cache.port}{blob.path}"] * clients
    return _curl(cache.node, urls, blob, *login)


def _curl(node: Node, urls: list[str], blob: ColdBlob, *options: str) -> list[dict[str, float]]:
    config = [f'url = "{url}"\noutput = "/dev/null"' for url in urls]
    node.write("/tmp/herd.curl", "\n".join(config))
    at_once = ["--parallel", "--parallel-immediate", "--parallel-max", "300"]
    quiet = ["--silent", "--insecure", "--http1.1", "--write-out", FORM]
    ended = node.run(["curl", *at_once, *quiet, *options, "--config", "/tmp/herd.curl"], timeout_s=300)
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    got = {(answer["status"], answer["bytes"]) for answer in answers}
    if len(answers) != len(urls) or got != {(200, blob.size_bytes)}:
        raise SystemExit(f"{len(answers)} of {len(urls)} clients were answered, with {got}: {ended.stderr}")
    return answers


if __name__ == "__main__":
    main()
