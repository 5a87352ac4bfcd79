"""Names: steered ones from the agent's memory, other ones past it, against dnsmasq that tells both.

Run it with `.venv/bin/python benchmarks/dns.py [--rounds N]`, as root. On the agent's node the resolver is
asked through the rules: steered names reach the agent, other ones pass it by (docs/decisions/0014). Each back
end has a node of its own; dnsmasq runs on one more, which has no rules, and forwards to the same resolver.
"""

from __future__ import annotations

import argparse
import re
from statistics import median

from comparison import Report, Row, at_least, at_most
from peer import Dnsmasq, Lab, Node, require

STEERED = ("registry-1.docker.io", "index.docker.io", "quay.io")
BACKENDS = ("nft", "ebpf", "nft-lease", "iptables")
SECONDS = 3
LOOKUPS = 1500
PORT = 5353

# One client that asks one name again and again, from a new socket each time as libc does: seconds, p50.
FORWARDED = """
import socket, statistics, struct, sys, time

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
question = b"\\3www\\7example\\3org\\0" + struct.pack("!HH", 1, 1)
took = []
for number in range(count):
    query = struct.pack("!6H", number + 1, 0x0100, 1, 0, 0, 0) + question
    began = time.perf_counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((address, port))
        sock.send(query)
        answer = sock.recv(4096)
    took.append(time.perf_counter() - began)
    assert answer[:2] == query[:2] and answer[7] == 1, answer
print(statistics.median(took))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    require("dnsmasq", "dnsperf")
    steered: dict[str, list[float]] = {name: [] for name in (*BACKENDS, "dnsmasq")}
    other: dict[str, list[float]] = {name: [] for name in (*BACKENDS, "direct", "dnsmasq")}
    with Lab(nodes=1 + len(BACKENDS)) as lab:
        lab.resolver.answer(dual_stack=True, ttl_s=3600)
        bare, *nodes = lab.nodes
        by_backend = dict(zip(BACKENDS, nodes, strict=True))
        resolver = str(lab.resolver.address)
        for backend, node in by_backend.items():
            node.install_trust()
            node.start_agent(f'[steering]\nbackend = "{backend}"\n').wait_steering()
        cached = Dnsmasq(bare, listen="127.0.0.1", port=PORT, upstream=resolver, cache_size=1000)
        plain = Dnsmasq(bare, listen="127.0.0.1", port=PORT + 1, upstream=resolver, cache_size=0)
        questions = "".join(f"{name} {qtype}\n" for name in STEERED for qtype in ("A", "AAAA"))
        for host in lab.nodes:
            host.write("/srv/questions", questions)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for backend, node in by_backend.items():
                steered[backend].append(queries_per_second(node, resolver, 53))
                other[backend].append(lookup(node, resolver, 53))
            steered["dnsmasq"].append(queries_per_second(bare, cached.address, cached.port))
            other["direct"].append(lookup(bare, resolver, 53))
            other["dnsmasq"].append(lookup(bare, plain.address, plain.port))
    report = Report(benchmark="dns", rounds=rounds)
    direct = median(other["direct"])
    for backend in BACKENDS:
        first = backend == BACKENDS[0]  # the default, which the design's targets are about
        report.add(
            Row(
                what=f"steered names, warm, {backend}",
                unit="queries/s",
                tidegate=steered[backend],
                peer=steered["dnsmasq"],
                peer_name="dnsmasq, cached",
                target=at_least(1.0) if first else None,
            )
        )
        report.add(
            Row(
                what=f"other names, added latency, p50, {backend}",
                unit="us",
                tidegate=[(took - direct) * 1e6 for took in other[backend]],
                peer=[(took - direct) * 1e6 for took in other["dnsmasq"]],
                peer_name="dnsmasq, forwarding",
                target=at_most(1.5) if first else None,
                note=f"a direct look-up takes {direct * 1e6:.0f} us" if first else "",
            )
        )
    report.finish()


def queries_per_second(node: Node, address: str, port: int) -> float:
    """Warm: a short run that is not counted comes first."""
    command = ["dnsperf", "-s", address, "-p", str(port), "-d", "/srv/questions", "-q", "100", "-l"]
    node.run([*command, "1"]).or_raise()
    answer = node.run([*command, str(SECONDS)]).or_raise()
    found = re.search(r"Queries per second:\s+([\d.]+)", answer.stdout)
    lost = re.search(r"Queries lost:\s+(\d+)", answer.stdout)
    if found is None:
        raise SystemExit(f"dnsperf said nothing of use:\n{answer.stdout}")
    print(f"  {address}:{port} steered: {float(found[1]):,.0f} queries/s, lost {lost[1] if lost else '?'}")
    return float(found[1])


def lookup(node: Node, address: str, port: int) -> float:
    took = float(node.python(FORWARDED, address, str(port), str(LOOKUPS)).or_raise().stdout)
    print(f"  {address}:{port} from {node.name}: {took * 1e6:.0f} us")
    return took


if __name__ == "__main__":
    main()
