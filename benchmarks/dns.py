"""Names: steered ones from the agent's memory, other ones past it, against dnsmasq that tells both.

Run it with `.venv/bin/python benchmarks/dns.py [--rounds N]`, as root. On the agent's node the resolver is
asked through the rules: steered names reach the agent, other ones pass it by (docs/decisions/0014). dnsmasq
runs on a second node, which has no rules, and forwards to the same resolver.
"""

from __future__ import annotations

import argparse
import re
from statistics import median

from comparison import Report, Row, at_least, at_most
from peer import Dnsmasq, Lab, Node, require

STEERED = ("registry-1.docker.io", "index.docker.io", "quay.io")
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
    steered: dict[str, list[float]] = {"tidegate": [], "dnsmasq": []}
    other: dict[str, list[float]] = {"direct": [], "tidegate": [], "dnsmasq": []}
    with Lab(nodes=2) as lab:
        lab.resolver.answer(dual_stack=True, ttl_s=3600)
        node, bare = lab.nodes
        resolver = str(lab.resolver.address)
        node.install_trust()
        node.start_agent().wait_steering()
        cached = Dnsmasq(bare, listen="127.0.0.1", port=PORT, upstream=resolver, cache_size=1000)
        plain = Dnsmasq(bare, listen="127.0.0.1", port=PORT + 1, upstream=resolver, cache_size=0)
        questions = "".join(f"{name} {qtype}\n" for name in STEERED for qtype in ("A", "AAAA"))
        for host in (node, bare):
            host.write("/srv/questions", questions)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            steered["tidegate"].append(queries_per_second(node, resolver, 53))
            steered["dnsmasq"].append(queries_per_second(bare, cached.address, cached.port))
            other["direct"].append(lookup(bare, resolver, 53))
            other["tidegate"].append(lookup(node, resolver, 53))
            other["dnsmasq"].append(lookup(bare, plain.address, plain.port))
    report = Report(benchmark="dns", rounds=rounds)
    report.add(
        Row(
            what="steered names, warm",
            unit="queries/s",
            tidegate=steered["tidegate"],
            peer=steered["dnsmasq"],
            peer_name="dnsmasq, cached",
            target=at_least(1.0),
        )
    )
    direct = median(other["direct"])
    report.add(
        Row(
            what="other names, added latency, p50",
            unit="us",
            tidegate=[(took - direct) * 1e6 for took in other["tidegate"]],
            peer=[(took - direct) * 1e6 for took in other["dnsmasq"]],
            peer_name="dnsmasq, forwarding",
            target=at_most(1.5),
            note=f"a direct look-up takes {direct * 1e6:.0f} us",
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
