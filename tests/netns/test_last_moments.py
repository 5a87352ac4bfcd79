"""What meets the agent in the milliseconds in which it goes: look-ups, connections, requests. I1, I4; N4."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from lab import Agent, Node, Process, Registry, Resolver
from lab.waiting import until

HOST = "registry-1.docker.io"
DEATHS = 3
GO = "/srv/go"
MANY = 150  # more than the agent accepts before it looks at its signals

BOTH_WAYS = pytest.mark.parametrize(
    "supervisor_too", [False, True], ids=["agent alone", "agent and supervisor"]
)


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


def tables(node: Node) -> list[str]:
    return node.run(["nft", "list", "tables"]).or_raise().stdout.splitlines()


def ready(process: Process) -> None:
    until(lambda: "ready" in process.log or not process.running, "the client's moment", within_s=20)
    assert "ready" in process.log, process.log


def last_word(process: Process) -> dict[str, int]:
    assert process.wait(60) == 0, process.log
    told: dict[str, int] = json.loads(process.log.splitlines()[-1])
    return told


# Looks a name up as soon as its connection ends, and again and again in the moments after.
ASKS_AT_THE_END = """
import json, pathlib, socket, struct, sys, time
address, name, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
lines = pathlib.Path("/etc/resolv.conf").read_text().splitlines()
resolver = next(line.split()[1] for line in lines if line.startswith("nameserver"))
query = struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0)
query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\\0\\0\\1\\0\\1"
stubs = []
with socket.create_connection((address, 443)) as connection:
    print("ready", flush=True)
    try:
        connection.recv(1)
    except OSError:
        pass
for _ in range(times):
    stub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stub.connect((resolver, 53))
    stub.send(query)
    stubs.append(stub)
    time.sleep(0.0005)
answered = 0
deadline = time.monotonic() + 2
for stub in stubs:
    stub.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        answered += len(stub.recv(4096)) > len(query)
    except OSError:
        pass
print(json.dumps({"asked": times, "answered": answered}), flush=True)
"""


@BOTH_WAYS
def test_a_client_whose_connection_ends_with_the_agent_can_look_names_up_at_once(
    node: Node, registry: Registry, agent: Agent, supervisor_too: bool
) -> None:
    """N4, I1: the rules are gone before the connections are, so no look-up is lost to a dead agent."""
    address, restarts = str(registry.addresses[HOST][0]), 0
    for _ in range(DEATHS):
        pid = agent.wait_steering().pid
        asks = [sys.executable, "-c", ASKS_AT_THE_END, address, HOST, "20"]
        with node.spawn(asks, log="asks") as client, node.process(pid) as process:
            ready(client)
            if supervisor_too:
                agent.supervisor.kill()
            process.kill()
            told = last_word(client)

        assert told["answered"] == told["asked"]
        if supervisor_too:
            agent = node.start_agent()
        else:
            restarts += 1
            until(lambda n=restarts, of=agent: of.log.count("starting it again") == n, "the restart")


# Connects many times, and only then shakes hands and asks: one answer for each, or none.
CROWD = """
import json, os, socket, ssl, sys, threading, time
address, host, many, go = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
print("here", flush=True)
while not os.path.exists(go):
    time.sleep(0.001)
connections = [socket.create_connection((address, 443), timeout=20) for _ in range(many)]
print("ready", flush=True)
context = ssl.create_default_context()
outcomes = []

def ask(connection):
    try:
        with context.wrap_socket(connection, server_hostname=host) as tls:
            tls.sendall(f"GET /v2/ HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
            outcomes.append(tls.recv(12).decode())
    except OSError as error:
        outcomes.append(type(error).__name__)

threads = [threading.Thread(target=ask, args=(connection,)) for connection in connections]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({outcome: outcomes.count(outcome) for outcome in outcomes}), flush=True)
"""


def test_connections_that_wait_to_be_accepted_at_sigterm_are_served(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """I1, I4: whom the kernel told that they are connected is neither cut nor left hanging."""
    address = str(registry.addresses[HOST][0])
    arguments = [address, HOST, str(MANY), GO]
    crowd = node.spawn([sys.executable, "-c", CROWD, *arguments], log="crowd")
    with crowd, node.process(agent.pid) as process:
        until(lambda: "here" in crowd.log, "the crowd is here")
        process.kill(signal.SIGSTOP)  # for a moment that is much shorter than the lease
        node.write(GO, "")
        ready(crowd)
        process.kill(signal.SIGTERM)
        process.kill(signal.SIGCONT)
        told = last_word(crowd)
        exit_code = agent.supervisor.wait(40)

    assert told == {"HTTP/1.1 401": MANY}
    assert exit_code == 0


# Shakes hands, waits until it is told to go on, and asks: on a connection that has not served it yet.
ASKS_LATE = """
import json, os, socket, ssl, sys, time
host, go = sys.argv[1], sys.argv[2]
plain = socket.create_connection((host, 443), timeout=20)
tls = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
for _ in range(int(sys.argv[3])):
    tls.sendall(f"GET /v2/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += tls.recv(65536)
    fields = head.lower().partition(b"\\r\\n\\r\\n")
    length = int(fields[0].partition(b"content-length:")[2].split()[0])
    body = fields[2]
    while len(body) < length:
        body += tls.recv(65536)
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.001)
try:
    tls.sendall(f"GET /v2/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".encode())
    answer = tls.recv(12).decode()
    while tls.recv(65536):
        pass
except OSError as error:
    answer = type(error).__name__
print(json.dumps({answer: 1}), flush=True)
"""


def test_a_connection_on_which_nothing_was_asked_yet_at_sigterm_is_answered(node: Node, agent: Agent) -> None:
    """I1, I4: no client tries again when its very first request finds the connection closed."""
    with node.spawn([sys.executable, "-c", ASKS_LATE, HOST, GO, "0"], log="late") as client:
        ready(client)
        agent.supervisor.kill(signal.SIGTERM)
        until(lambda: "table inet tidegate" not in tables(node), "the redirection is withdrawn")
        node.write(GO, "")
        told = last_word(client)

    assert told == {"HTTP/1.1 401": 1}
    assert agent.supervisor.wait(10) == 0


# Asks once, says so, and waits longer than any stub would before it asks again.
ASKS_ONCE = """
import json, pathlib, socket, struct, sys
lines = pathlib.Path("/etc/resolv.conf").read_text().splitlines()
resolver = next(line.split()[1] for line in lines if line.startswith("nameserver"))
name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
stub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stub.connect((resolver, 53))
stub.settimeout(10)
stub.send(struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + name + b"\\0" + struct.pack("!HH", 16, 1))
print("ready", flush=True)
try:
    answer = stub.recv(4096)
except OSError:
    answer = b""
print(json.dumps({"answered": int(answer[:2] == struct.pack("!H", 4711))}), flush=True)
"""


def test_a_look_up_on_its_way_at_sigterm_is_answered(node: Node, resolver: Resolver, agent: Agent) -> None:
    """I1, I4: it needs the rules that give answers the resolver's address, so those go last."""
    forwarded = agent.status()["dns"]["forwarded"]
    resolver.goes_dark("hung")
    try:
        with node.spawn([sys.executable, "-c", ASKS_ONCE, HOST], log="once") as client:
            ready(client)
            until(lambda: agent.status()["dns"]["forwarded"] > forwarded, "the look-up is on its way")
            agent.supervisor.kill(signal.SIGTERM)
            until(lambda: "stopping" in agent.log, "the agent stops")
            resolver.comes_back()
            told = last_word(client)
    finally:
        resolver.comes_back()

    assert told == {"answered": 1}
    assert agent.supervisor.wait(10) == 0
