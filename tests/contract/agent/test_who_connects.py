"""From a connection to the process that opened it: real sockets, real processes, with rights and without."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidegate_agent.clients.cgroup import Cgroups, hierarchy
from tidegate_agent.clients.owner import Owner, Owners
from tidegate_agent.clients.process import Processes
from tidegate_agent.clients.register import Clients
from tidegate_agent.clients.sock_diag import SockDiag, SocketFacts
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.interceptor import Arrival

CLIENT = """
import ctypes, socket, sys
address, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if name:
    ctypes.CDLL(None).prctl(15, name.encode())  # PR_SET_NAME
clients = [socket.create_connection((address, port)) for _ in range(2)]
for client in clients:
    print(*client.getsockname()[:2], flush=True)
sys.stdin.read()
"""
# Holds so many connections; for each line read it closes the one that the line numbers and opens another.
RENEWING = """
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
while True:
    if len(held) >= count:
        line = sys.stdin.readline()
        if not line:
            break
        held.pop(int(line)).close()
    held.append(socket.create_connection((address, port)))
    print(held[-1].getsockname()[1], flush=True)
"""
# In a pid namespace of its own: a process is read, ends, and another one gets its number.
SAME_NUMBER = """
import json, subprocess
from tidegate_agent.clients.process import Processes
processes, told = Processes(bundle=None), []
first = subprocess.Popen(["sleep", "30"])
while processes.read(first.pid).name != "sleep":
    pass
told += [processes.reread(first.pid).name, processes.reread(first.pid).name]
first.kill()
first.wait(10)
told.append(processes.reread(first.pid))
again = subprocess.Popen(["sleep", "30"])
processes.reread(again.pid)
again.kill()
again.wait(10)
open("/proc/sys/kernel/ns_last_pid", "w").write(str(again.pid - 1))
other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
while processes.read(other.pid).name != "cat":
    pass
told += [processes.reread(other.pid).name, other.pid == again.pid]
other.communicate()
print(json.dumps(told))
"""
WITHOUT_PTRACE = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-all")
ASK = """
import json, sys
from pathlib import Path
from tidegate_agent.clients.cgroup import Cgroups
from tidegate_agent.clients.owner import Owners
from tidegate_agent.clients.process import Processes
from tidegate_agent.clients.sock_diag import SockDiag
from tidegate_proxy.endpoint import Endpoint
client, server = (Endpoint.of(address, int(port)) for address, port in json.loads(sys.argv[1]))
processes = Processes(bundle=Path("/etc/ssl/certs/ca-certificates.crt"))
with SockDiag() as sockets:
    owner = Owners(Cgroups(None), processes).of(sockets.find(client, server))
read = [process for pid in owner.pids if (process := processes.read(pid))]
print(json.dumps([owner.certain, [[each.pid, each.name, each.sees_store] for each in read]]))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root; run: sudo script/test")


class Opened:
    """A process with two connections, and both ends of each as the agent sees them."""

    def __init__(self, process: subprocess.Popen[str], clients: list[Endpoint], server: Endpoint):
        self.process = process
        self.pid = process.pid
        self.clients = clients
        self.server = server


Open = Callable[..., Opened]


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as parts:
        yield parts


@pytest.fixture
def sockets(parts: ExitStack) -> SockDiag:
    return parts.enter_context(SockDiag())


@pytest.fixture
def open_client(parts: ExitStack) -> Open:
    """Starts a client process against a listener of the test, on loopback."""

    def opened(*wrapper: str, address: str = "127.0.0.1", name: str = "") -> Opened:
        family = socket.AF_INET6 if ":" in address and "." not in address else socket.AF_INET
        host = address.removeprefix("::ffff:")
        listener = parts.enter_context(socket.create_server((host, 0), family=family))
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", CLIENT, address, str(listener.getsockname()[1]), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        parts.callback(process.wait, 10)
        parts.enter_context(process.stdin)  # its end ends the client
        parts.enter_context(process.stdout)
        lines = [process.stdout.readline().split() for _ in range(2)]
        for _ in range(2):
            parts.enter_context(listener.accept()[0])
        clients = [Endpoint.of(where.removeprefix("::ffff:"), int(port)) for where, port in lines]
        return Opened(process, clients, Endpoint.of(*listener.getsockname()[:2]))

    return opened


def owners(processes: Processes | None = None) -> Owners:
    mounted = hierarchy(Path("/proc/self/mountinfo").read_text())
    return Owners(Cgroups(mounted), processes or Processes(bundle=None))


# The socket


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_connection_is_found_by_its_client_side(sockets: SockDiag, open_client: Open, address: str) -> None:
    """N9: in both families, and for IPv4 through an IPv6 socket; user, inode and cgroup are the process's."""
    client = open_client(address=address)

    found = sockets.find(client.clients[0], client.server)

    assert found is not None
    links = {path.readlink() for path in Path(f"/proc/{client.pid}/fd").iterdir()}
    assert Path(f"socket:[{found.inode}]") in links
    assert found.uid == os.getuid()
    assert found.cgroup_id == _cgroup_id_of(client.pid)


def test_both_ends_are_told_apart(sockets: SockDiag, open_client: Open) -> None:
    """N9: on loopback the accepted socket has the same addresses the other way round."""
    client = open_client()

    one = sockets.find(client.clients[0], client.server)
    other = sockets.find(client.server, client.clients[0])

    assert one is not None
    assert other is not None
    assert one.inode != other.inode


def test_nobody_connects_from_where_nobody_connects(sockets: SockDiag, open_client: Open) -> None:
    """N9: no such socket, families that do not match, and a client that is gone."""
    client = open_client()
    assert sockets.find(Endpoint.of("127.0.0.1", 1), client.server) is None
    assert sockets.find(Endpoint.of("::1", 1), client.server) is None
    assert sockets.find(client.clients[0], client.server) is not None

    client.process.stdin.close()
    client.process.wait(10)

    left = sockets.find(client.clients[0], client.server)
    assert left is None or left.inode == 0


@needs_root
def test_another_networks_socket_is_not_found(sockets: SockDiag) -> None:
    """N9: a container's connection with the very same addresses is another one."""
    source = "import socket, sys; s = socket.create_server(('127.0.0.1', 45454)); " + (
        "c = socket.create_connection(('127.0.0.1', 45454), source_address=('127.0.0.1', 45455)); "
        "print('there', flush=True); sys.stdin.read()"
    )
    command = [
        "unshare",
        "--net",
        "sh",
        "-ec",
        'ip link set lo up; exec "$@"',
        "-",
        sys.executable,
        "-c",
        source,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"

        assert sockets.find(Endpoint.of("127.0.0.1", 45455), Endpoint.of("127.0.0.1", 45454)) is None
        assert not Processes(bundle=None).on_this_network(process.pid)
        assert Processes(bundle=None).on_this_network(os.getpid())
        process.communicate(timeout=10)


# The process


def test_the_owner_is_the_process_that_holds_the_socket(sockets: SockDiag, open_client: Open) -> None:
    """N9: also when the last one found was another."""
    first, second, found = open_client(), open_client(), owners()

    for client in (first, second, first):
        for end in client.clients:
            facts = sockets.find(end, client.server)
            assert facts is not None
            assert found.of(facts) == Owner((client.pid,), certain=True)


@pytest.mark.parametrize("kept", [0, 9])
def test_the_owner_is_found_however_its_connections_come_and_go(
    sockets: SockDiag, parts: ExitStack, kept: int
) -> None:
    """N9: descriptors are used again in any order, beside some that stay, and by two processes in turn."""
    found, clients = owners(), []
    listener = parts.enter_context(socket.create_server(("127.0.0.1", 0)))
    server = Endpoint.of(*listener.getsockname()[:2])
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", RENEWING, "127.0.0.1", str(server.port), str(kept + 4)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        parts.callback(process.wait, 10)
        clients.append((process, parts.enter_context(process.stdin), parts.enter_context(process.stdout)))
        assert all(process.stdout.readline() for _ in range(kept + 4))
    for step in range(60):
        process, orders, answers = clients[step // 2 % 2]
        orders.write(f"{kept + step * step % 4}\n")
        orders.flush()
        facts = sockets.find(Endpoint.of("127.0.0.1", int(answers.readline())), server)

        assert facts is not None
        assert found.of(facts) == Owner((process.pid,), certain=True)


def test_nobody_owns_a_socket_that_its_process_has_closed() -> None:
    """N9: inode 0, which is no socket of anybody's."""
    assert owners().of(SocketFacts(inode=0, uid=os.getuid(), cgroup_id=1)).pids == ()


@needs_root
def test_without_the_right_to_look_into_processes_it_is_one_of_a_group(open_client: Open) -> None:
    """N9: the group holds the client; each one's name and view of the trust store are still told."""
    client = open_client(name="containerd")
    ends = [[str(end.address), end.port] for end in (client.clients[0], client.server)]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.environ["PATH"],
    }

    asked = subprocess.run(
        [*WITHOUT_PTRACE, sys.executable, "-c", ASK, json.dumps(ends)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=30,
    )

    certain, group = json.loads(asked.stdout)
    assert not certain
    assert [client.pid, "containerd", True] in group


@needs_root
def test_a_process_with_mounts_of_its_own_is_judged_by_what_is_mounted(
    open_client: Open, tmp_path: Path
) -> None:
    """N9: the same bundle through other mounts is the same; another one is not."""
    bundle = tmp_path / "bundle.pem"
    own = tmp_path / "own.pem"
    for file in (bundle, own):
        file.write_text("")
    private_tmp = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs private /mnt; exec "$@"', "-")
    own_bundle = ("unshare", "--mount", "sh", "-ec", f'mount --bind {own} {bundle}; exec "$@"', "-")
    processes = Processes(bundle=bundle)

    views = [
        processes.read(client.pid)
        for client in (open_client(), open_client(*private_tmp), open_client(*own_bundle))
    ]

    assert [view.sees_store for view in views if view is not None] == [True, True, False]


def test_a_process_that_is_gone_is_nobody() -> None:
    """N9: and so is one that never was."""
    with subprocess.Popen(["true"]) as process:
        process.wait(10)

    assert Processes(bundle=None).read(process.pid) is None


def test_a_process_that_becomes_another_program_is_told_by_its_new_name() -> None:
    """N9: exec keeps pid and start time; what was known of the program before is not true of this one."""
    processes = Processes(bundle=None)
    with subprocess.Popen(["sh", "-c", "read x; exec sleep 30"], stdin=subprocess.PIPE) as process:
        names = {read.name for _ in range(3) if (read := processes.reread(process.pid)) is not None}
        assert names <= {"sh", Path(sys.executable).name[:15]}
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 10
        while (read := processes.read(process.pid)) is not None and read.name != "sleep":
            assert time.monotonic() < deadline
        again = processes.reread(process.pid)
        process.kill()

    assert again == read
    assert processes.reread(process.pid) is None
    processes.close()


@needs_root
def test_a_number_that_another_process_got_is_not_the_process_before() -> None:
    """N9: pids are used again."""
    told = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", SAME_NUMBER],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        timeout=30,
    )

    assert json.loads(told.stdout) == ["sleep", "sleep", None, "cat", True]


def test_few_processes_are_held() -> None:
    """I8: a held process takes a descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    processes = Processes(bundle=None)
    for pid in processes.pids()[:200]:
        processes.reread(pid)
    held = len(list(Path("/proc/self/fd").iterdir())) - before
    processes.close()

    assert 0 < held <= 32
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_process_started_when_it_started() -> None:
    """N9: what is compared with the anchor's time."""
    before = time.time()
    with subprocess.Popen(["sleep", "30"]) as process:
        read = Processes(bundle=None).read(process.pid)
        process.kill()

    assert read is not None
    assert before - 0.05 <= read.started <= time.time() + 0.05


# The register


class Refusal(ssl.SSLError):
    """How a client's alert arrives."""

    reason = "TLSV1_ALERT_UNKNOWN_CA"


class Now:
    value = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.value


@pytest.fixture
def now() -> Now:
    return Now()


def register(sockets: SockDiag, now: Now, *, trusted_since: float = 0.0) -> Clients:
    processes = Processes(bundle=None)
    return Clients(
        find=sockets.find,
        owners=owners(processes),
        processes=processes,
        trusted_since=lambda _host: trusted_since,
        now=now,
    )


def refuse(clients: Clients, client: Opened, end: Endpoint, error: OSError) -> None:
    assert clients.why_splice(end, client.server) is None
    clients.handshake_failed(Arrival(sni="ghcr.io", original=client.server, peer=end), error)


def test_a_client_that_refused_us_is_left_alone_for_a_day(
    sockets: SockDiag, open_client: Open, now: Now
) -> None:
    """N9: all its connections, and no other process's; then it is asked again."""
    stranger, friend, clients = open_client(), open_client(), register(sockets, now)

    refuse(clients, stranger, stranger.clients[0], Refusal())

    assert clients.why_splice(stranger.clients[1], stranger.server) == "distrusted"
    assert clients.why_splice(friend.clients[0], friend.server) is None
    (shown,) = clients.spliced()
    assert (shown.process.pid, shown.until) == (stranger.pid, now.value + timedelta(hours=24))
    now.value += timedelta(hours=24)
    assert clients.spliced() == ()
    assert clients.why_splice(stranger.clients[1], stranger.server) is None


def test_a_client_that_restarts_is_asked_again(sockets: SockDiag, open_client: Open, now: Now) -> None:
    """N9: it may trust us now, so it is no longer shown either."""
    stranger, clients = open_client(), register(sockets, now)
    refuse(clients, stranger, stranger.clients[0], Refusal())

    stranger.process.stdin.close()
    stranger.process.wait(10)
    again = open_client()

    assert clients.spliced() == ()
    assert clients.why_splice(again.clients[0], again.server) is None


@pytest.mark.parametrize("error", [ConnectionResetError(), ssl.SSLError(1, "no shared cipher")])
def test_another_failure_of_a_handshake_is_not_held_against_it(
    sockets: SockDiag, open_client: Open, now: Now, error: OSError
) -> None:
    """N9: a client that was interrupted trusts us as before."""
    client, clients = open_client(), register(sockets, now)

    refuse(clients, client, client.clients[0], error)

    assert clients.why_splice(client.clients[1], client.server) is None


def test_a_runtime_is_left_alone_and_named_until_it_is_restarted(
    sockets: SockDiag, open_client: Open, now: Now
) -> None:
    """N9: by its name and start alone, before it has lost anything."""
    stale = open_client(name="containerd")
    clients = register(sockets, now, trusted_since=time.time() + 1)

    assert clients.why_splice(stale.clients[0], stale.server) == "not_restarted"
    named = {each.pid: each for each in clients.runtimes()}[stale.pid]
    assert (named.name, named.trusts) == ("containerd", False)
    assert named.action.startswith("systemctl restart ")
    assert {each.process.pid: each.until for each in clients.spliced()} == {stale.pid: None}


def test_a_client_that_cannot_be_told_is_intercepted(open_client: Open, now: Now) -> None:
    """I1: as if there were nothing to know."""
    client = open_client(name="containerd")

    def fails(_peer: Endpoint, _original: Endpoint) -> SocketFacts | None:
        raise OSError("no answer")

    for find in (fails, lambda _peer, _original: None):
        clients = Clients(
            find=find,
            owners=owners(),
            processes=Processes(bundle=None),
            trusted_since=lambda _host: time.time() + 1,
            now=now,
        )

        assert clients.why_splice(client.clients[0], client.server) is None
        clients.handshake_failed(
            Arrival(sni="ghcr.io", original=client.server, peer=client.clients[0]), Refusal()
        )
        assert clients.spliced() == ()


def _cgroup_id_of(pid: int) -> int:
    mounted = hierarchy(Path("/proc/self/mountinfo").read_text())
    paths = [
        line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")
    ]
    if mounted is None or not paths:
        pytest.skip("cgroup version 2 is not mounted")
    return (mounted / paths[0].lstrip("/")).stat().st_ino
