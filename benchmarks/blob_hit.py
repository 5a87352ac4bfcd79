"""Hits: a large blob and a manifest, from the agent's cache and from nginx, with the same clients in turn.

Run it with `.venv/bin/python benchmarks/blob_hit.py [--rounds N]`, as root. The agent is reached as clients
reach it, by name and through its rules; nginx directly on a loopback port.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from comparison import Report, Row, at_least, at_most
from origin import REGISTRY, publish, token
from peer import Lab, Nginx, Node, cpu_seconds, require, until

BLOB_BYTES = 1 << 30
IMAGE = "docker.io/library/small:1"
REPOSITORY = "library/small"
NGINX_PORT = 9443
CONNECTIONS = 16
KEEP_ALIVE_S = 4
NEW_CONNECTIONS = 1500
SEQUENTIAL = 300

# One client that connects anew for each request, as most registry clients do: seconds at the median.
EACH_ANEW = """
import socket, ssl, statistics, sys, time

host, port, path, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4]
context = ssl._create_unverified_context()
request = f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode()
took = []
for _ in range(count):
    began = time.perf_counter()
    with socket.create_connection(address) as sock, context.wrap_socket(sock, server_hostname=host) as tls:
        tls.sendall(request)
        while tls.recv(65536):
            pass
    took.append(time.perf_counter() - began)
print(statistics.median(took))
"""


@dataclass(slots=True)
class Contestant:
    """Who serves: where its blob and its manifest are, and how to know its processes."""

    name: str
    host: str
    port: int
    blob: str
    manifest: str
    pids: Callable[[], list[int]]
    figures: dict[str, list[float]] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"https://{self.host}:{self.port}{path}"

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)
        print(f"  {self.name:9} {name}: {value:,.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["blob", "keepalive", "newconn"], help="one part alone")
    options = parser.parse_args()
    require("nginx", "openssl", "wrk", "ab")
    parts = {"blob": large_blob, "keepalive": keep_alive, "newconn": new_connections}
    with Lab() as lab:
        agent, nginx = contestants(lab)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}")
            for name, part in parts.items():
                if options.only in (None, name):
                    for contestant in (agent, nginx):
                        part(lab.node, contestant)
    report = Report(benchmark="blob_hit", rounds=options.rounds)
    for what, unit, target in ROWS:
        if what in agent.figures:
            report.add(
                Row(
                    what=what,
                    unit=unit,
                    tidegate=agent.figures[what],
                    peer=nginx.figures[what],
                    peer_name="nginx",
                    target=target,
                )
            )
    report.finish()


ROWS = (
    ("1 GiB blob over TLS, throughput", "GB/s", at_least(1.0)),
    ("1 GiB blob over TLS, CPU", "s/GB", at_most(1.0)),
    ("manifest by digest, keep-alive, 16 connections", "requests/s", at_least(0.75)),
    ("manifest, keep-alive, CPU", "us/request", None),
    ("manifest, new TLS 1.3 connection each, ab, 8 at once", "requests/s", at_least(0.9)),
    ("manifest, new connection each, CPU", "us/request", None),
    ("manifest, new connection each, one after the other, p50", "ms", at_most(1 / 0.9)),
)
(THROUGHPUT, CPU, KEEP_ALIVE, KEEP_ALIVE_CPU, NEW, NEW_CPU, ONE_BY_ONE) = (row[0] for row in ROWS)


def contestants(lab: Lab) -> tuple[Contestant, Contestant]:
    """The agent and nginx on one node, both holding the same 1 GiB and the same manifest."""
    node = lab.node
    node.install_trust()
    agent = node.start_agent().wait_steering()
    node.pull("skopeo", IMAGE)
    nginx = Nginx(node, f"127.0.0.1:{NGINX_PORT}")
    blob = publish(lab, "large", BLOB_BYTES)
    login = ["--header", f"Authorization: Bearer {token(node, blob.repository)}"]
    node.run(["curl", "-sf", "-o", "/dev/null", *login, f"https://{REGISTRY}{blob.path}"]).or_raise()
    until(lambda: node.path(stored(blob.encoded)).exists(), "the blob is stored")
    nginx.put("blob", node.path(stored(blob.encoded)).read_bytes())
    manifest = lab.images[IMAGE].contents.manifest
    nginx.put("manifest", node.path(stored(manifest.removeprefix("sha256:"))).read_bytes())
    pid = agent.pid
    ours = Contestant(
        "tidegate",
        REGISTRY,
        443,
        blob.path,
        f"/v2/{REPOSITORY}/manifests/{manifest}",
        lambda: [pid],
    )
    return ours, Contestant("nginx", "127.0.0.1", NGINX_PORT, "/blob", "/manifest", lambda: nginx.pids)


def stored(encoded: str) -> str:
    return f"/var/lib/tidegate/blobs/sha256/{encoded[:2]}/{encoded}"


def large_blob(node: Node, server: Contestant) -> None:
    before = cpu_seconds(node, server.pids())
    form = '{"status": %{http_code}, "bytes": %{size_download}, "seconds": %{time_total}}'
    answer = node.run(
        [
            "curl",
            "--silent",
            "--insecure",
            "--http1.1",
            "-o",
            "/dev/null",
            "-w",
            form,
            server.url(server.blob),
        ]
    )
    got = json.loads(answer.or_raise().stdout)
    if got["status"] != 200 or got["bytes"] < BLOB_BYTES:
        raise SystemExit(f"{server.name} did not serve the blob: {got}")
    server.note(THROUGHPUT, got["bytes"] / 1e9 / got["seconds"])
    server.note(CPU, (cpu_seconds(node, server.pids()) - before) / (got["bytes"] / 1e9))


def keep_alive(node: Node, server: Contestant) -> None:
    before = cpu_seconds(node, server.pids())
    answer = node.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{KEEP_ALIVE_S}s", server.url(server.manifest)]
    ).or_raise()
    if "Non-2xx" in answer.stdout:
        raise SystemExit(f"{server.name} did not serve the manifest:\n{answer.stdout}")
    server.note(KEEP_ALIVE, number(r"Requests/sec:\s+([\d.]+)", answer.stdout))
    requests = number(r"(\d+) requests in", answer.stdout)
    server.note(KEEP_ALIVE_CPU, (cpu_seconds(node, server.pids()) - before) / requests * 1e6)


def new_connections(node: Node, server: Contestant) -> None:
    """`ab`, and one client after the other. Not `openssl s_time`: it sends no SNI, so it would be spliced."""
    before = cpu_seconds(node, server.pids())
    answer = node.run(
        ["ab", "-q", "-n", str(NEW_CONNECTIONS), "-c", "8", "-f", "TLS1.3", server.url(server.manifest)]
    ).or_raise()
    if "Non-2xx" in answer.stdout:
        raise SystemExit(f"{server.name} did not serve the manifest:\n{answer.stdout}")
    server.note(NEW, number(r"Requests per second:\s+([\d.]+)", answer.stdout))
    server.note(NEW_CPU, (cpu_seconds(node, server.pids()) - before) / NEW_CONNECTIONS * 1e6)
    latency = node.python(EACH_ANEW, server.host, str(server.port), server.manifest, str(SEQUENTIAL))
    server.note(ONE_BY_ONE, float(latency.or_raise().stdout) * 1e3)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"no {pattern!r} in:\n{text}")
    return float(found[1])


if __name__ == "__main__":
    main()
