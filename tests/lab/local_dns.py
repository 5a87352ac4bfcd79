"""DNS daemons that run on a node itself, as on many hosts: dnsmasq and unbound on 127.0.0.1.

And the servers of a small tree of zones, for an unbound that asks nobody but them: a root, which delegates,
and one server further down, which knows the addresses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from .host import Host
from .process import Process
from .waiting import until

LISTEN = "127.0.0.1"

TREE = """
import socket, sys, threading
from dnslib import A, DNSRecord, NS, QTYPE, RCODE, RR, SOA
root, leaf, addresses = sys.argv[1], sys.argv[2], dict(pair.split("=") for pair in sys.argv[3:])
zones = {".".join(name.split(".")[-2:]) for name in addresses}

def answer(query, at_root):
    # The case of the question comes back, as use-caps-for-id wants it.
    reply, name = query.reply(), str(query.q.qname).lower().rstrip(".")
    zone = next((z for z in zones if name == z or name.endswith("." + z)), None)
    if at_root:
        if zone is None:
            reply.header.aa = 1
            if name and name not in {z.split(".")[-1] for z in zones}:
                reply.header.rcode = RCODE.NXDOMAIN
            if name == "" and query.q.qtype == QTYPE.NS:
                reply.add_answer(RR(".", QTYPE.NS, rdata=NS("root.test."), ttl=300))
                reply.add_ar(RR("root.test.", QTYPE.A, rdata=A(root), ttl=300))
            else:
                reply.add_auth(RR(".", QTYPE.SOA, rdata=SOA("root.test.", "root.test."), ttl=300))
        else:
            reply.header.aa = 0
            reply.add_auth(RR(zone + ".", QTYPE.NS, rdata=NS("ns." + zone + "."), ttl=300))
            reply.add_ar(RR("ns." + zone + ".", QTYPE.A, rdata=A(leaf), ttl=300))
        return reply
    reply.header.aa = 1
    known = addresses.get(name, leaf if name == "ns." + str(zone) else None)
    if known and query.q.qtype in (QTYPE.A, QTYPE.ANY):
        reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(known), ttl=60))
    elif name == zone and query.q.qtype == QTYPE.NS:
        reply.add_answer(RR(zone + ".", QTYPE.NS, rdata=NS("ns." + zone + "."), ttl=300))
    else:
        if not known and name != zone:
            reply.header.rcode = RCODE.NXDOMAIN
        reply.add_auth(RR((zone or "") + ".", QTYPE.SOA, rdata=SOA("ns." + str(zone) + ".", "x."), ttl=60))
    return reply

def serve(address, at_root):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    while True:
        data, client = sock.recvfrom(4096)
        query = DNSRecord.parse(data)
        print(address, QTYPE[query.q.qtype], query.q.qname, flush=True)
        sock.sendto(answer(query, at_root).pack(), client)

threading.Thread(target=serve, args=(root, True), daemon=True).start()
serve(leaf, False)
"""


def start_dnsmasq(host: Host, *lines: str, listen: str = LISTEN, port: int = 53) -> Process:
    """dnsmasq on 127.0.0.1 of a host, with these lines and no files of the host's; else where they say."""
    path = f"/etc/lab-local-dnsmasq-{port}.conf"
    where = [f"listen-address={listen}"] if listen else []
    host.write(path, "\n".join(["no-resolv", "no-hosts", "bind-interfaces", "user=root", *where, *lines, ""]))
    process = host.spawn(
        ["dnsmasq", "--keep-in-foreground", f"--port={port}", f"--conf-file={path}"], log="local-dnsmasq"
    )
    until(lambda: _running(process) and port in host.listening(), "dnsmasq listens")
    return process


def start_unbound(
    host: Host, server: Sequence[str], *clauses: str, listen: str = LISTEN, port: int = 53
) -> Process:
    """unbound on 127.0.0.1 of a host, or elsewhere: lines of its `server:` clause, and further clauses."""
    lines = [
        "server:",
        f"interface: {listen}@{port}",
        "do-daemonize: no",
        'username: ""',
        'chroot: ""',
        'pidfile: ""',
        "use-syslog: no",
        'logfile: ""',
        "do-not-query-localhost: no",
        'module-config: "iterator"',
        *server,
        "remote-control:",
        "control-enable: no",
        *clauses,
    ]
    host.write("/etc/lab-unbound.conf", "\n".join([*lines, ""]))
    process = host.spawn(["unbound", "-d", "-c", "/etc/lab-unbound.conf"], log="unbound")
    until(lambda: _running(process) and port in host.listening(), "unbound listens")
    return process


def start_tree(host: Host, root: str, leaf: str, addresses: Mapping[str, object]) -> Process:
    """Authoritative servers at two addresses of a host, for the zones of these names; they log queries."""
    pairs = [f"{name}={address}" for name, address in addresses.items()]
    process = host.spawn([sys.executable, "-c", TREE, root, leaf, *pairs], log="tree")
    until(
        lambda: _running(process) and host.run(["ss", "-Hlnu", "src", leaf]).stdout,
        "the zones' servers listen",
    )
    return process


def _running(process: Process) -> bool:
    if not process.running:
        raise RuntimeError(f"it ended: {process.log}")
    return True
