"""The agent with each back end: pulls, what firewalls and dockerd do to its rules, what `auto` picks."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from kill_matrix.stage import HOSTS_OWN_TABLES
from lab import Agent, Image, Lab, Node, Registry, Resolver
from lab.dockerd import Dockerd
from lab.footprint import Footprint
from lab.resolver import HOST
from lab.waiting import until
from steered.namespace import question

SMALL = "docker.io/library/small:1"
BACKENDS = ("nft", "ebpf", "nft-lease", "iptables")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("nft", "ebpf")]
UNOWNED = ("nft-lease", "iptables")
NOTICED_S = 30.0  # the gate probes every 5 s and tries again after 0.5 s; the machine may be busy


def start(node: Node, backend: str) -> Agent:
    node.install_trust()
    return node.start_agent(f'[steering]\nbackend = "{backend}"\n').wait_steering()


def is_cached(node: Node, registry: Registry, image: Image) -> bool:
    """Whether a pull now comes from the agent, which has had it before."""
    registry.forget()
    pull = node.pull("skopeo", SMALL)
    assert pull.contents == image.contents, pull.stderr
    return registry.requests_for("bytes") == []


def steering(agent: Agent) -> dict[str, object]:
    return dict(agent.status()["steering"])


@pytest.mark.parametrize("backend", [*UNOWNED, *SLOW])
def test_pulls_are_cached_and_a_stop_leaves_nothing(
    lab: Lab, node: Node, registry: Registry, backend: str
) -> None:
    """N14, I4: whatever steers, `status` names it, and nothing of it stays."""
    if backend == "iptables":
        node.run(["sh", "-c", HOSTS_OWN_TABLES]).or_raise()
    node.install_trust()
    before = Footprint.of(node)
    agent = start(node, backend)
    assert node.pull("skopeo", SMALL).ok

    assert is_cached(node, registry, lab.images[SMALL])
    assert steering(agent)["backend"] == backend
    assert agent.metrics()[f'tidegate_steering_active{{backend="{backend}"}}'] == 1
    assert agent.stop() == 0
    assert Footprint.of(node) == before


FLUSHED_BY = {
    "nft-lease": ["nft", "flush", "ruleset"],
    "iptables": ["sh", "-c", "for x in iptables ip6tables; do $x -t nat -F; $x -t nat -X; done"],
}


@pytest.mark.parametrize("backend", UNOWNED)
def test_a_firewall_that_flushes_everything_is_noticed_and_the_rules_go_in_anew(
    lab: Lab, node: Node, registry: Registry, backend: str
) -> None:
    """I3, N15: pulls go direct until the next probe, and are cached again after it."""
    agent = start(node, backend)
    assert node.pull("skopeo", SMALL).ok
    node.run(FLUSHED_BY[backend]).or_raise()
    went_on = node.pull("skopeo", SMALL)
    until(lambda: int(str(steering(agent)["restored"])) >= 1, "the rules go in anew", within_s=NOTICED_S)
    until(lambda: steering(agent)["active"], "it steers again", within_s=NOTICED_S)

    assert went_on.contents == lab.images[SMALL].contents, went_on.stderr
    assert is_cached(node, registry, lab.images[SMALL])
    assert "putting them in anew" in agent.log


@pytest.mark.parametrize(
    ("backend", "told"),
    [("nft-lease", "removed the table of an agent"), ("iptables", "ended the lease of an agent")],
)
def test_the_supervisor_ends_steering_long_before_the_lease_does(
    lab: Lab, node: Node, registry: Registry, backend: str, told: str
) -> None:
    """N4, I1: a killed agent's rules would redirect to nobody for a minute; a pull after it succeeds."""
    node.install_trust()
    agent = node.start_agent(f'[steering]\nbackend = "{backend}"\nlease = "60s"\n').wait_steering()
    agent.kill()
    until(lambda: told in agent.log, "the supervisor's word", within_s=20)
    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    agent.wait_steering()


# One query for a steered name; its rcode, or "lost" where a stub resolver would have to ask again.
ASKING = """
import socket, sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], 53))
    sock.send(bytes.fromhex(sys.argv[2]))
    print("sent", flush=True)
    sock.settimeout(5)
    try:
        print("rcode", sock.recv(4096)[3] & 15)
    except OSError as error:
        print("lost", error)
"""


@pytest.mark.parametrize("backend", UNOWNED)
def test_a_look_up_between_death_and_the_end_of_the_rules_is_told_to_ask_elsewhere(
    node: Node, resolver: Resolver, backend: str
) -> None:
    """N5, N15, I1: nobody reads it any more; without SERVFAIL its client waits 5 s before it asks again."""
    node.install_trust()
    agent = node.start_agent(f'[steering]\nbackend = "{backend}"\nlease = "60s"\n').wait_steering()
    with node.process(agent.pid) as process:
        agent.supervisor.kill(signal.SIGSTOP)
        process.kill()
    query = question("registry-1.docker.io").hex()
    asking = node.spawn([sys.executable, "-c", ASKING, str(resolver.address), query])
    until(lambda: "sent" in asking.log, "the query is on its way")
    agent.supervisor.kill(signal.SIGCONT)
    asking.wait()

    assert "rcode 2" in asking.log


@pytest.mark.parametrize("backend", UNOWNED)
def test_the_next_start_takes_out_what_two_killed_processes_left(node: Node, backend: str) -> None:
    """I4: also one that steers by other means, or not at all."""
    node.install_trust()
    agent = start(node, backend)
    with node.process(agent.pid) as process:
        agent.supervisor.kill()
        process.kill()
        process.wait()
    left = ours(node)
    successor = node.start_agent('[steering]\nbackend = "none"\n')
    until(lambda: not ours(node), "nothing of ours is left", within_s=20)
    successor.stop()

    assert left


def ours(node: Node) -> list[str]:
    """Tables, chains and sets with our name."""
    listed = node.run(["sh", "-c", "nft list tables; iptables-save; ip6tables-save; ipset list -name"])
    return [line for line in listed.stdout.splitlines() if "tidegate" in line]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_dockerd_that_restarts_and_writes_its_own_rules_disturbs_nothing(
    lab: Lab, node: Node, registry: Registry, backend: str
) -> None:
    """N14: dockerd flushes and rewrites its chains, and puts its jumps before and behind ours."""
    agent = start(node, backend)
    node.start_containerd()
    dockerd = Dockerd(node, iptables=True)
    assert node.pull("skopeo", SMALL).ok
    with_docker = is_cached(node, registry, lab.images[SMALL])
    dockerd.restart()

    assert with_docker
    assert is_cached(node, registry, lab.images[SMALL])
    assert steering(agent)["restored"] == 0
    assert "DOCKER" in node.run(["iptables-save", "-t", "nat"]).or_raise().stdout


def test_auto_takes_ebpf_where_nothing_tracks_connections_and_nft_elsewhere(node: Node) -> None:
    """N15: found by trying; `status` shows what was picked, the log why another was not."""
    node.install_trust()
    untracked = node.start_agent('[steering]\nbackend = "auto"\n').wait_steering()
    picked = [steering(untracked)["backend"]]
    untracked.stop()
    node.run(["nft", "add table inet firewall"]).or_raise()
    chain = "{ type filter hook output priority 0; }"
    node.run(["nft", f"add chain inet firewall track {chain}"]).or_raise()
    node.run(["nft", "add rule inet firewall track ct state new"]).or_raise()
    node.dig("+short", "www.example.org").or_raise()
    tracked = node.start_agent('[steering]\nbackend = "auto"\n').wait_steering()
    picked.append(steering(tracked)["backend"])

    assert picked == ["ebpf", "nft"]


def test_auto_goes_on_to_the_next_where_one_does_not_work(node: Node) -> None:
    """N15: without the right to load programs nft is next; the log names what was passed over, and why."""
    node.install_trust()
    rights = ["setpriv", "--bounding-set=-bpf,-sys_admin"]
    agent = node.start_agent('[steering]\nbackend = "auto"\n', under=rights).wait_steering()
    lines = [json.loads(line) for line in agent.log.splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("event") == "steering backend passed over"]

    assert steering(agent)["backend"] == "nft"
    assert [line["backend"] for line in told] == ["ebpf"]
    assert "CAP_BPF" in told[0]["cause"]


@pytest.mark.parametrize("backend", ["nft-lease", "iptables", "ebpf", "auto"])
def test_the_dry_run_shows_what_would_go_in_and_changes_nothing(node: Node, backend: str) -> None:
    """DESIGN 9: for each back end in its own words."""
    before = Footprint.of(node)
    node.write("/etc/tidegate/agent.toml", f'[steering]\nbackend = "{backend}"\n')
    shown = node.tidegate("agent", "--dry-run").or_raise().stdout
    expected = {
        "nft-lease": "table inet tidegate {\n\tset alive",
        "iptables": "-A tidegate -p tcp -m set --match-set tidegate_steered4 dst,dst -j REDIRECT",
        "ebpf": "cgroup/connect4",
        "auto": "auto, the first that works of ebpf, nft, nft-lease, iptables",
    }

    assert expected[backend] in shown
    assert Footprint.of(node) == before


def test_a_host_without_ip6tables_steers_ipv4_and_says_so(lab: Lab, node: Node, registry: Registry) -> None:
    """N12, N15: IPv6 goes direct, with a warning and what to type."""
    node.run(["sh", "-c", "rm -f /usr/sbin/ip6tables*"]).or_raise()
    agent = start(node, "iptables")
    assert node.pull("skopeo", SMALL).ok

    assert is_cached(node, registry, lab.images[SMALL])
    assert "IPv6 is not steered" in agent.log
    assert "there is no ip6tables-save here" in agent.log
    agent.stop()
    assert "tidegate" not in node.run(["iptables-save", "-t", "nat"]).or_raise().stdout


# As on a kernel without xt_string: the real program, once what it is given does not need that.
WITHOUT_STRING = r"""
for name in iptables ip6tables; do
    for flavour in "" -legacy -nft; do
        path=/usr/sbin/$name$flavour-restore
        real=$(readlink -f "$path")
        rm "$path"
        printf '%s\n' '#!/bin/bash' 'text=$(cat)' \
            '[[ $text != *"-m string"* ]] || { echo "Could not load match string" >&2; exit 2; }' \
            "exec -a ${path##*/} $real \"\$@\" <<<\"\$text\"" >"$path"
        chmod 755 "$path"
    done
done
"""


def test_where_the_kernel_cannot_read_names_every_look_up_passes_the_agent(lab: Lab, node: Node) -> None:
    """N15: what is steered is steered all the same, and other names are answered."""
    node.run(["bash", "-c", WITHOUT_STRING]).or_raise()
    agent = start(node, "iptables")
    other = node.dig(HOST)
    pull = node.pull("skopeo", SMALL)

    assert pull.contents == lab.images[SMALL].contents, pull.stderr
    assert agent.status()["cache"]["misses"]
    assert other.stdout.strip()
    assert agent.status()["dns"]["forwarded"]


def test_a_host_without_iptables_is_told_what_to_install(node: Node) -> None:
    """N15: cause and next step."""
    node.install_trust()
    node.run(["sh", "-c", "rm -f /usr/sbin/ip6tables* /usr/sbin/iptables*"]).or_raise()
    agent = node.start_agent('[steering]\nbackend = "iptables"\n')
    code = agent.supervisor.wait(20)

    assert code == 1
    assert "iptables is not installed" in agent.log
    assert "apt install iptables" in agent.log
