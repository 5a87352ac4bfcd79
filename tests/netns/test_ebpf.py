"""The eBPF back end in real network namespaces: what only it has, and what it leaves alone.

What every back end has in common is in `test_steering`. The programs hang at the machine's own root cgroup,
and so run for every process; the first test is the one that says why that harms nobody.
"""
# ruff: noqa: F401, F811 - pytest finds test_steering's fixtures where they are imported

import ctypes
import errno
import os
import platform
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Fault, Lab, Registry
from lab.booted import cgroups
from lab.waiting import until
from netns.test_deaths import kill, stored_bytes
from netns.test_steering import namespaces, node
from steered.agent import SOURCES, Agent
from steered.joined import table_names
from steered.namespace import Namespace, drips
from steered.place import NEIGHBOUR4, NODE4, NODE4_SECOND, NODE6, PROBE, REGISTRY4, REGISTRY6, RESOLVER4
from tidegate_agent.steering import EbpfSteering, SteeringFailed
from tidegate_agent.steering.ebpf import records
from tidegate_agent.steering.ebpf.hooks import compiled
from tidegate_agent.steering.plan import MAX_ENDPOINTS, PROBE6
from tidegate_proxy.endpoint import Endpoint

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and eBPF need root"),
    pytest.mark.skipif(cgroups() is None, reason="no cgroup2 file system is mounted here"),
]

MAPPED = f"::ffff:{REGISTRY4}"
IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
BPF_NUMBER = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 0)
GET_FD_BY_ID = {"link_id": 30, "prog_id": 13, "map_id": 14}


@pytest.fixture
def agent(node: Namespace) -> Iterator[Agent]:
    agent = Agent(node, backend="ebpf")
    yield agent
    agent.close()


def steering_agent(agent: Agent) -> Agent:
    return agent.steer((REGISTRY4, 443, 60), (REGISTRY6, 443, 60))


# Whom it leaves alone


def test_sockets_of_other_network_namespaces_are_untouched(
    namespaces: tuple[Namespace, Namespace],
    agent: Agent,
) -> None:
    """N14, I5: the programs run for every process, and 127.0.0.1 is somebody else in every namespace."""
    ours, world = namespaces
    steering_agent(agent)

    assert ours.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    for address in (REGISTRY4, REGISTRY6, MAPPED, PROBE):  # a server in `world` listens on all of them
        assert world.greeting(address) == "world"
        with world.connect(address) as sock:
            assert sock.getpeername()[:2] == (address, 443)


def test_sockets_bound_to_a_device_go_direct(node: Namespace, agent: Agent) -> None:
    """N14: they could not reach loopback."""
    steering_agent(agent)
    for address in (REGISTRY4, REGISTRY6):
        with node.make_socket(address) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            bound.connect((address, 443))

            assert bound.makefile().readline() == "world\n"


@pytest.mark.parametrize("address", [REGISTRY4, REGISTRY6])
def test_a_udp_socket_that_connects_to_a_steered_endpoint_is_untouched(
    node: Namespace,
    agent: Agent,
    address: str,
) -> None:
    """N14: HTTP/3 is nothing of ours; its own address tells where it really goes."""
    steering_agent(agent)
    with node.make_socket(address, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 443))

        assert sock.getsockname()[0] == (NODE6 if ":" in address else NODE4)


# How clients connect


@pytest.mark.parametrize("address", [REGISTRY4, REGISTRY6, MAPPED])
def test_a_client_is_told_that_its_peer_is_whom_it_called(
    node: Namespace,
    agent: Agent,
    address: str,
) -> None:
    """N14: getpeername() tells the original destination, as with NAT; an IPv6 socket may call IPv4."""
    steering_agent(agent)
    with node.connect(address) as sock:
        expected = REGISTRY4 if address == MAPPED else address

        assert sock.makefile().readline().strip() == f"agent {Endpoint.of(expected, 443)}"
        assert sock.getpeername()[:2] == (address, 443)
        assert sock.getsockname()[0] in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def test_a_client_of_something_else_on_loopback_is_told_the_truth(
    node: Namespace,
    agent: Agent,
) -> None:
    """N14: also when it dials the agent itself, with a socket that was steered before."""
    steering_agent(agent)
    with node.entered(), socket.create_server(("127.0.0.1", 0)) as server, node.connect(REGISTRY4) as sock:
        unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
        assert ctypes.CDLL(None).connect(sock.fileno(), unspecified, len(unspecified)) == 0
        sock.connect(server.getsockname())

        assert sock.getpeername() == server.getsockname()


@pytest.mark.parametrize(("source", "address"), [(NODE4_SECOND, REGISTRY4), (NODE6, REGISTRY6)])
def test_a_client_that_binds_its_own_address_first_is_steered(
    node: Namespace,
    agent: Agent,
    source: str,
    address: str,
) -> None:
    """N14: loopback is reached from every address of the host."""
    steering_agent(agent)
    with node.make_socket(address) as sock:
        sock.bind((source, 0))
        sock.connect((address, 443))

        assert sock.makefile().readline().strip() == f"agent {Endpoint.of(address, 443)}"
        assert sock.getsockname()[0] == source


def test_a_client_that_does_not_wait_for_its_connect_is_steered(
    node: Namespace,
    agent: Agent,
) -> None:
    """N14: and may call connect(2) again to learn how it went."""
    steering_agent(agent)
    with node.make_socket(REGISTRY4) as sock:
        sock.setblocking(False)
        assert sock.connect_ex((REGISTRY4, 443)) in (0, errno.EINPROGRESS)
        select.select([], [sock], [], 10)
        assert sock.connect_ex((REGISTRY4, 443)) in (0, errno.EISCONN)
        sock.setblocking(True)

        assert sock.makefile().readline().strip() == f"agent {REGISTRY4}:443"


@pytest.mark.parametrize("deferred", [False, True], ids=["MSG_FASTOPEN", "TCP_FASTOPEN_CONNECT"])
def test_a_client_with_tcp_fast_open_is_steered(
    node: Namespace,
    agent: Agent,
    deferred: bool,
) -> None:
    """N14: RFC 7413; it sends before it is connected."""
    steering_agent(agent)
    with node.make_socket(REGISTRY4) as sock:
        if deferred:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect((REGISTRY4, 443))
            sock.sendall(b"hello")
        else:
            sock.setblocking(True)
            sock.sendto(b"hello", socket.MSG_FASTOPEN, (REGISTRY4, 443))

        assert sock.makefile().readline().strip() == f"agent {REGISTRY4}:443"


def test_a_client_with_multipath_tcp_is_steered(node: Namespace, agent: Agent) -> None:
    """N14: RFC 8684; it falls back to TCP, because the agent speaks no other."""
    steering_agent(agent)
    with node.entered():
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        except OSError as error:
            pytest.skip(f"this kernel has no multipath TCP: {error}")
    with sock:
        sock.settimeout(5)
        sock.connect((REGISTRY4, 443))

        assert sock.makefile().readline().strip() == f"agent {REGISTRY4}:443"


@pytest.mark.parametrize("address", [REGISTRY4, REGISTRY6])
def test_a_host_without_any_route_is_steered(address: str) -> None:
    """N14: the destination changes before the kernel looks for a route to it."""
    island = Namespace()
    island.run("ip", "link", "set", "lo", "up")
    agent = Agent(island, backend="ebpf")
    try:
        steering_agent(agent)
        with pytest.raises(OSError, match="unreachable"):
            island.connect(address, 444)

        assert island.greeting(address) == f"agent {Endpoint.of(address, 443)}"
    finally:
        agent.close()
        island.close()


def test_connections_are_not_tracked_and_only_dns_is_in_the_firewall(
    node: Namespace,
    agent: Agent,
) -> None:
    """N14: no NAT, no connection tracking, and so no keeper table."""
    before = tracked(node)
    steering_agent(agent)
    agent.steer_dns(PROBE, RESOLVER4)
    with node.connect(REGISTRY4) as sock:
        assert drips(sock)

        assert tracked(node) == before
    assert table_names(node) == ["tidegate"]
    rules = node.run("nft", "list", "table", "inet", "tidegate")
    assert "type nat" not in rules
    assert "redirect" not in rules


def test_what_connected_before_its_address_was_learned_goes_on(
    node: Namespace,
    agent: Agent,
) -> None:
    """I1: a connection is looked at once, when it is made."""
    with node.connect(REGISTRY4, 443) as sock:
        steering_agent(agent)

        assert sock.makefile().readline() == "world\n"


# How it ends


def test_a_killed_agent_leaves_nothing_in_the_kernel(node: Namespace, agent: Agent) -> None:
    """N4, I4: programs, maps and links are descriptors; the last one's end is theirs."""
    steering_agent(agent)
    agent.steer_dns(RESOLVER4)
    held = kernel_objects(agent.process.pid)
    assert all(map(exists, held))
    agent.kill()

    until(lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world", "direct again", every_s=0.001)
    until(lambda: not any(map(exists, held)), "nothing left of it")
    assert {kind for kind, _ in held} == {"link_id", "prog_id", "map_id"}
    assert node.greeting(REGISTRY6) == "world"
    assert table_names(node) == []


def test_the_links_are_the_first_to_be_closed_and_nothing_is_inherited(
    node: Namespace,
    agent: Agent,
) -> None:
    """N4: a connection that came after the listeners had gone would be refused."""
    steering_agent(agent)
    connections = [node.connect(REGISTRY4) for _ in range(64)]
    assert all(map(drips, connections))
    descriptors = {
        int(each.name): each.read_text() for each in Path(f"/proc/{agent.process.pid}/fdinfo").iterdir()
    }
    links = {number for number, text in descriptors.items() if "link_id:" in text}
    table = min(links) - 1  # the netlink socket that owns it
    ours = [text for text in descriptors.values() if re.search("(link|prog|map)_id:", text)]
    for sock in connections:
        sock.close()

    assert len(links) == 4
    assert max(descriptors.keys() - links - {table}) < table
    for text in ours:
        flags = re.search(r"^flags:\s*(\d+)$", text, re.MULTILINE)
        assert flags is not None and int(flags[1], 8) & os.O_CLOEXEC


def test_a_withdrawn_agent_is_asked_about_no_connection(node: Namespace, agent: Agent) -> None:
    """N18: the programs leave the cgroup; what was redirected can still be told, and goes on."""
    steering_agent(agent)
    with node.connect(REGISTRY4) as established:
        assert drips(established)
        agent.do("withdraw")
        left = [kind for kind, _ in kernel_objects(agent.process.pid)]

        assert "link_id" not in left
        assert drips(established)
    assert node.greeting(PROBE) == ""


def test_what_was_steered_before_a_withdrawal_is_not_steered_after_it(
    node: Namespace,
    agent: Agent,
) -> None:
    """I3: opened again it steers what is learned from then on."""
    steering_agent(agent)
    agent.steer_dns(RESOLVER4)
    agent.do("withdraw")
    agent.steer((NEIGHBOUR4, 443, 60))

    assert node.greeting(NEIGHBOUR4) == f"agent {NEIGHBOUR4}:443"
    assert (node.greeting(REGISTRY4), node.greeting(REGISTRY6)) == ("world", "world")
    assert node.greeting(RESOLVER4, 53) == "world"


def test_the_probe_s_connections_are_redirected_without_the_lease(
    node: Namespace,
    agent: Agent,
) -> None:
    """I3: in both families, before anything of the host's is steered."""
    agent.do("open")

    assert node.greeting(PROBE) == f"agent {PROBE}:443"
    assert node.greeting(str(PROBE6.address), PROBE6.port) == f"agent {PROBE6}"


def test_the_room_for_original_destinations_is_bounded_and_the_newest_are_kept(
    node: Namespace,
) -> None:
    """I8: what was not used for longest is forgotten, not what comes."""
    room = compiled().maps["originals"].max_entries
    with node.entered(), socket.create_server(("127.0.0.1", 8443)) as server:
        steering = EbpfSteering(port=8443)
        try:
            steering.open()
            steering.activate()
            steering.add([(Endpoint.of(REGISTRY4, 443), 60)])
            originals = steering._hooks.maps["originals"]  # type: ignore[union-attr]
            for number in range(2 * room):
                originals.put(records.cookie(1 << 60 | number), bytes(20))
            with node.connect(REGISTRY4), server.accept()[0] as accepted:
                found = steering.original_dst(accepted)
            kept = sum(
                originals.get(records.cookie(1 << 60 | number)) is not None for number in range(2 * room)
            )
        finally:
            steering.close()

    assert found == Endpoint.of(REGISTRY4, 443)
    assert room / 2 < kept <= room


def test_what_has_timed_out_makes_room_in_the_kernel_too(
    node: Namespace,
) -> None:
    """I8: the programs pass over it at once, and the agent takes it out when more comes."""
    now = [time.monotonic()]
    first, others = (
        Endpoint.of(REGISTRY4, 443),
        [Endpoint.of(f"198.18.{n >> 8}.{n & 255}", 443) for n in range(1100)],
    )
    with node.entered():
        steering = EbpfSteering(port=8443, clock=lambda: now[0])
        try:
            steering.open()
            steering.add([(first, 1)])
            steered = steering._hooks.maps["steered4"]  # type: ignore[union-attr]
            before = steered.get(records.endpoint(first))
            now[0] += 10
            steering.add([(each, 60) for each in others])

            assert before is not None
            assert steered.get(records.endpoint(first)) is None
            assert all(steered.get(records.endpoint(each)) is not None for each in others)
        finally:
            steering.close()


def test_when_the_kernel_has_no_room_none_of_what_was_learned_at_once_is_steered(
    node: Namespace,
) -> None:
    """I8, I1: it goes direct, and what was steered before stays so."""
    many = [
        Endpoint.of(f"198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", 443) for n in range(MAX_ENDPOINTS - 1)
    ]
    with node.entered():
        steering = EbpfSteering(port=8443)
        try:
            steering.open()
            steering.add([(Endpoint.of(REGISTRY4, 443), 60)])
            steered = steering._hooks.maps["steered4"]  # type: ignore[union-attr]
            with pytest.raises(SteeringFailed, match="E2BIG"):
                steering.add([(each, 60) for each in many])  # the probe's address has one place

            assert steering.addresses() == 1
            assert steered.get(records.endpoint(Endpoint.of(REGISTRY4, 443))) is not None
            assert all(steered.get(records.endpoint(each)) is None for each in (many[0], many[-1]))
        finally:
            steering.close()


# What it refuses


@pytest.mark.parametrize(("first", "second"), [("ebpf", "ebpf"), ("ebpf", "nft"), ("nft", "ebpf")])
def test_a_second_agent_is_refused_whatever_steers_and_leaves_the_first_alone(
    node: Namespace,
    first: str,
    second: str,
) -> None:
    """N4: both have the table for DNS; the one that was refused holds nothing of the kernel's."""
    steers, comes = Agent(node, backend=first), Agent(node, backend=second, port=8444)
    try:
        steering_agent(steers)
        refused = comes.ask("open")["refused"]

        assert f"process {steers.process.pid}" in refused
        assert f"kill {steers.process.pid}" in refused
        assert kernel_objects(comes.process.pid) == []
        assert node.greeting(REGISTRY4) == f"agent {REGISTRY4}:443"
    finally:
        steers.close()
        comes.close()


OPENED = """
from tidegate_agent.steering import ByUid, EbpfSteering
EbpfSteering(port=8443, exemption=ByUid(uid=0)).open()
print("in")
"""


def opened(*command: str) -> str:
    """What becomes of an agent's `open` behind this command, in a network of its own."""
    outcome = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        check=False,
        capture_output=True,
        text=True,
    )
    return outcome.stdout + outcome.stderr


@pytest.mark.parametrize(("kept", "missing"), [("net_admin", "CAP_BPF"), ("bpf", "CAP_NET_ADMIN")])
def test_without_the_rights_the_start_is_refused(kept: str, missing: str) -> None:
    """N4: the refusal names the capability that is missing and what to type."""
    command = ["setpriv", f"--bounding-set=-all,+{kept}", "--inh-caps=-all", sys.executable, "-c", OPENED]
    said = opened(*command)

    assert f"StartRefused: no right to load eBPF programs ({missing})" in said
    assert f"give it {missing}" in said
    assert 'backend = "nft"' in said


def test_two_capabilities_are_enough() -> None:
    """N17: for a user of its own."""
    rights = "-all,+net_admin,+bpf"
    drop = ["setpriv", "--reuid=65534", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]

    assert opened(*drop, f"--bounding-set={rights}", sys.executable, "-c", OPENED) == "in\n"


def test_without_cgroup_version_2_the_start_is_refused() -> None:
    """N4: with how to mount it."""
    hidden = 'umount -R /sys/fs/cgroup 2>/dev/null; exec "$@"'
    said = opened("unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", OPENED)

    assert "StartRefused: no cgroup2 file system is mounted here" in said
    assert "mount -t cgroup2" in said


@pytest.mark.parametrize("also", ["", "--pid --fork --mount-proc"], ids=["cgroups", "cgroups and processes"])
def test_in_a_cgroup_namespace_of_its_own_the_start_is_refused(also: str) -> None:
    """I3: in a container it would see its own connections redirected, and nobody else's."""
    above = cgroups()
    assert above is not None
    part = above / f"tidegate-test-{os.getpid()}"
    part.mkdir()
    try:
        inside = (
            f"echo $$ >{part}/cgroup.procs; "
            f'exec unshare --cgroup --mount {also} sh -c "umount -R /sys/fs/cgroup; '
            'mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec \\"\\$@\\"" sh "$@"'
        )
        said = opened("sh", "-c", inside, "sh", sys.executable, "-c", OPENED)
    finally:
        until(lambda: not (part / "cgroup.procs").read_text(), "an empty cgroup")
        part.rmdir()

    assert "StartRefused: this process sees only a part of the host's cgroups" in said
    assert "--cgroupns=host" in said


def test_where_its_own_connections_are_not_seen_the_start_is_refused() -> None:
    """I3: tried with a real connection; here the agent is outside the cgroups that process 1 and it see."""
    above = cgroups()
    assert above is not None
    part = above / f"tidegate-test-{os.getpid()}"
    (part / "first").mkdir(parents=True)
    try:
        agent = (
            f"echo 0 >{above}/cgroup.procs; umount -R /sys/fs/cgroup; "
            'mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'
        )
        first = f"echo 0 >{part}/first/cgroup.procs; sh -c '{agent}' sh \"$@\"; true"
        namespaces_of_its_own = ["unshare", "--cgroup", "--mount", "--pid", "--fork", "--mount-proc"]
        entered = f'echo $$ >{part}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", entered, "sh", *namespaces_of_its_own, "sh", "-c", first, "sh"]
        said = opened(*command, sys.executable, "-c", OPENED)
    finally:
        for each in (part / "first", part):
            until(lambda each=each: not (each / "cgroup.procs").read_text(), "an empty cgroup")
            each.rmdir()

    assert "StartRefused: connections of this process are not seen by programs at" in said
    assert "/proc/self/cgroup" in said


def test_a_hung_agent_steers_nothing_after_the_lease(node: Namespace, agent: Agent) -> None:
    """N5: programs and links stay, and do nothing."""
    steering_agent(agent)
    agent.process.send_signal(signal.SIGSTOP)
    until(lambda: node.greeting(REGISTRY4, timeout_s=0.1) == "world", "the end of the lease")

    assert node.greeting(REGISTRY6) == "world"
    assert node.greeting(NEIGHBOUR4) == "world"
    assert len([kind for kind, _ in kernel_objects(agent.process.pid) if kind == "link_id"]) == 4


def kernel_objects(pid: int) -> list[tuple[str, int]]:
    """Every link, program and map that the process holds: its kind and its number in the kernel."""
    found = []
    for each in Path(f"/proc/{pid}/fdinfo").iterdir():
        text = each.read_text()
        for kind in GET_FD_BY_ID:
            if number := re.search(rf"^{kind}:\s*(\d+)$", text, re.MULTILINE):
                found.append((kind, int(number[1])))
                break  # a link names its program as well
    return found


def exists(named: tuple[str, int]) -> bool:
    """Whether the kernel has this object, bpf(2)."""
    kind, number = named
    attributes = struct.pack("=III", number, 0, 0)
    descriptor = ctypes.CDLL(None).syscall(BPF_NUMBER, GET_FD_BY_ID[kind], attributes, len(attributes))
    if descriptor >= 0:
        os.close(descriptor)
    return bool(descriptor >= 0)


def tracked(node: Namespace) -> str:
    """How many flows connection tracking holds; "" without it."""
    return node.run("sh", "-c", "cat /proc/sys/net/netfilter/nf_conntrack_count 2>/dev/null || true").strip()


# With the real agent


EBPF = '[steering]\nbackend = "ebpf"\n'
SMALL, SINGLE, LARGE = (f"docker.io/library/{name}:1" for name in ("small", "single", "large"))


def test_pulls_are_steered_and_cached(lab: Lab, registry: Registry) -> None:
    """N14, N1: a whole agent, its own probe included; other hosts of the lab are other network namespaces."""
    lab.node.install_trust()
    agent = lab.node.start_agent(EBPF).wait_steering()
    for client in ("skopeo", "podman"):
        assert lab.node.pull(client, SMALL).brought(lab.images[SMALL])

    status = agent.status()
    assert status["steering"]["backend"] == "ebpf"
    assert status["cache"]["hits"] > 0
    assert len(registry.requests_for("bytes")) == 1 + len(lab.images[SMALL].contents.layers)  # and the config


def test_a_runtime_that_does_not_know_our_authority_is_told_by_its_socket(lab: Lab) -> None:
    """N9: its own socket's peer is the agent, and not the registry as with NAT."""
    node = lab.node
    daemon = node.start_containerd()
    assert node.pull("cri", SINGLE).brought(lab.images[SINGLE])
    node.install_trust()
    agent = node.start_agent(EBPF).wait_steering()
    assert node.pull("cri", SMALL).brought(lab.images[SMALL])

    (left_alone,) = agent.status()["clients_spliced"]
    assert (left_alone["pid"], left_alone["reason"]) == (daemon.process.pid, "not_restarted")


def test_a_pull_in_flight_at_the_death_of_everything_is_cut_at_once(lab: Lab, registry: Registry) -> None:
    """I1, N4: its connection is one over loopback, which ends without NAT; the next goes direct."""
    lab.large()
    registry.fault(Fault(on="bytes", bytes_per_s=20_000_000, times=None))
    lab.node.install_trust()
    agent = lab.node.start_agent(EBPF).wait_steering()
    with lab.node.start_pull("skopeo", LARGE, storage="cut").process as process:
        until(lambda: stored_bytes(lab.node, "cut") > 1_000_000, "the middle of the layer", within_s=30)
        kill(lab.node, agent, supervisor_too=True)
        killed = time.monotonic()
        exit_code = process.wait(10)
        cut_s = time.monotonic() - killed
    registry.heal()

    assert exit_code != 0
    assert cut_s < 2  # 100 MB would take 5 s
    assert lab.node.pull("skopeo", SMALL).brought(lab.images[SMALL])
    assert lab.node.run(["nft", "list", "tables"]).or_raise().stdout == ""
