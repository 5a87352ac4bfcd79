"""What the agent costs those it does not serve: connects and bytes elsewhere, and a neighbour's transfer.

Run `.venv/bin/python benchmarks/steer.py [--rounds N] [--backends nft ebpf nft-lease iptables]` as root; it
takes a node for each back end. The peer is one more, without an agent, which does the same things at the same
hosts. The neighbour is nginx on an address that a steered name resolves to as well, asked under its own name:
the agent splices that connection. eBPF programs run for every node; of the others' sockets they ask whose
network they are in, and no more.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

from comparison import Report, Row, at_least
from peer import Agent, Lab, Nginx, Node, cpu_seconds, require, until

CONNECTS = 2000
RAW_BYTES = 4 << 30
NEIGHBOUR_BYTES = 1 << 30
SHARED = "eu.gcr.io"
"""Steered, and resolved to the neighbour's address."""
NEIGHBOUR = "www.example.org"

# Connects to a port of this very host: p50 and p99 in seconds.
CONNECT = """
import json, socket, sys, threading, time

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
took = []
for _ in range(count):
    began = time.perf_counter()
    sock = socket.create_connection((address, port))
    took.append(time.perf_counter() - began)
    sock.close()
took.sort()
print(json.dumps([took[count // 2], took[count * 99 // 100]]))
"""

# Bytes a second through one loopback connection, without TLS.
RAW = """
import socket, sys, threading, time

total = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
def send():
    sock, piece, left = socket.create_connection(listener.getsockname()), bytes(1 << 18), total
    while left > 0:
        left -= sock.send(piece)
    sock.close()
sender = threading.Thread(target=send)
began = time.perf_counter()
sender.start()
sock, got, scratch = listener.accept()[0], 0, bytearray(1 << 18)
while count := sock.recv_into(scratch):
    got += count
print(got / (time.perf_counter() - began))
"""

# Accepts and closes, in a thread of the kernel's making as far as the client can tell.
ACCEPT = """
import socket

listener = socket.create_server(("0.0.0.0", 8000), backlog=1024)
while True:
    listener.accept()[0].close()
"""


LINES = (
    ("connect elsewhere, p50", "us", "p50", None),
    ("connect elsewhere, p99", "us", "p99", None),
    ("raw TCP over loopback", "GB/s", "raw", None),
    ("neighbour's 1 GiB over TLS, spliced", "GB/s", "neighbour", at_least(0.7)),
)


class Measured:
    """The samples of one node; `backend` is empty for the one without an agent."""

    def __init__(self, node: Node, backend: str = "") -> None:
        self.node = node
        self.backend = backend
        self.samples: defaultdict[str, list[float]] = defaultdict(list)
        self.agent: Agent | None = None

    def start(self) -> None:
        self.node.install_trust()
        self.agent = self.node.start_agent(f'[steering]\nbackend = "{self.backend}"\n').wait_steering()
        self.node.dig("+short", SHARED).or_raise()

    def round(self, address: str) -> None:
        p50, p99 = connect(self.node, address, 8000)
        self.samples["p50"].append(p50)
        self.samples["p99"].append(p99)
        self.samples["raw"].append(float(self.node.python(RAW, str(RAW_BYTES)).or_raise().stdout) / 1e9)
        pid = self.agent.pid if self.agent is not None else 0
        before = cpu_seconds(self.node, [pid]) if pid else 0
        self.samples["neighbour"].append(transfer(self.node))
        if pid:
            used = cpu_seconds(self.node, [pid]) - before
            self.samples["cpu"].append(used / (NEIGHBOUR_BYTES / 1e9))
            self.samples["rss"].append(rss_mib(self.node, pid))
            p50, p99 = connect(self.node, address, 443)
            self.samples["steered p50"].append(p50)
            self.samples["steered p99"].append(p99)

    @property
    def spliced(self) -> float:
        assert self.agent is not None
        return sum(
            value
            for name, value in self.agent.metrics().items()
            if name.startswith("tidegate_connections_total") and "spliced" in name
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["nft", "ebpf", "nft-lease", "iptables"])
    arguments = parser.parse_args()
    rounds, backends = arguments.rounds, arguments.backends
    require("nginx", "openssl")
    with Lab(nodes=1 + len(backends)) as lab:
        bare, *nodes = lab.nodes
        none = Measured(bare)
        steered = [Measured(node, backend) for node, backend in zip(nodes, backends, strict=True)]
        host = lab.add_node("neighbour")
        address = str(host.interfaces[0].ip)
        lab.resolver.answer(records={SHARED: [host.interfaces[0].ip], NEIGHBOUR: [host.interfaces[0].ip]})
        nginx = Nginx(host, "0.0.0.0:443")
        nginx.put("blob", bytes(1 << 20) * (NEIGHBOUR_BYTES >> 20))
        host.spawn(["python3", "-c", ACCEPT], log="accept")
        until(lambda: 8000 in host.listening(), "the neighbour accepts")
        for each in steered:
            each.start()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for each in (*steered, none):
                each.round(address)
        for each in steered:
            if each.spliced < rounds:
                raise SystemExit(
                    f"{each.backend}: the neighbour's transfers were not spliced: nothing measured"
                )
    report = Report(benchmark="steer", rounds=rounds)
    for each in steered:
        add_rows(report, each, none)
    report.finish()


def add_rows(report: Report, ours: Measured, none: Measured) -> None:
    """What one back end costs, beside a node without an agent."""
    for what, unit, name, target in LINES:
        report.add(
            Row(
                what=f"{ours.backend}: {what}",
                unit=unit,
                tidegate=ours.samples[name],
                peer=none.samples[name],
                peer_name="no agent",
                target=target,
            )
        )
    report.add(
        Row(
            what=f"{ours.backend}: connect that is steered, p50",
            unit="us",
            tidegate=ours.samples["steered p50"],
            peer=none.samples["p50"],
            peer_name="no agent",
            note="the agent accepts on the node; without it the packet crosses the lab's bridge",
        )
    )
    for what, unit, name in (
        ("connect that is steered, p99", "us", "steered p99"),
        ("splice, the agent's CPU", "s/GB", "cpu"),
        ("the agent's RSS after it", "MiB", "rss"),
    ):
        report.add(Row(what=f"{ours.backend}: {what}", unit=unit, tidegate=ours.samples[name]))


def connect(node: Node, address: str, port: int) -> tuple[float, float]:
    """Microseconds, p50 and p99."""
    p50, p99 = json.loads(node.python(CONNECT, address, str(port), str(CONNECTS)).or_raise().stdout)
    print(f"  {node.name} connect to port {port}: p50 {p50 * 1e6:.0f} us, p99 {p99 * 1e6:.0f} us")
    return p50 * 1e6, p99 * 1e6


def transfer(node: Node) -> float:
    """GB a second of the neighbour's blob."""
    form = '{"status": %{http_code}, "bytes": %{size_download}, "seconds": %{time_total}}'
    answer = node.run(
        ["curl", "-sk", "--http1.1", "-o", "/dev/null", "-w", form, f"https://{NEIGHBOUR}/blob"]
    ).or_raise()
    got = json.loads(answer.stdout)
    if (got["status"], got["bytes"]) != (200, NEIGHBOUR_BYTES):
        raise SystemExit(f"the neighbour did not serve its blob: {got}")
    print(f"  {node.name} neighbour: {NEIGHBOUR_BYTES / 1e9 / got['seconds']:.2f} GB/s")
    return float(NEIGHBOUR_BYTES / 1e9 / got["seconds"])


def rss_mib(node: Node, pid: int) -> float:
    status = node.path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
