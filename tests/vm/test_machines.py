"""What only a machine shows: cloud-init, systemd, a reboot, and what is left after an uninstall.

Each test starts from the moment at which cloud-init had set the machines up.
"""

from __future__ import annotations

import re

import pytest

from lab import Agent, Registry, until
from vm.cache import CHECKOUT
from vm.fleet import BEFORE, READING, Fleet
from vm.machine import BOOT_S
from vm.node import UNIT, MachineNode
from vm.remote import RemoteHost

SMALL = "docker.io/library/small:1"
EXPOSURE = 2.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# What a machine writes while it lives, what clients stored, and what cloud-init wrote before us.
OF_ITS_OWN = re.compile(
    r" /(var/lib/(systemd|containerd|containers|dbus|private|ucf|apt|dpkg)|srv|home|etc/tidegate)\b"
    r"| /etc/(passwd|shadow|group|gshadow)-"  # what they were before the last change
)


@pytest.fixture
def node(fleet: Fleet) -> MachineNode:
    found = fleet.node
    assert isinstance(found, MachineNode)
    return found


def shown(host: RemoteHost, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "--value", "--property", name, unit]).or_raise().stdout.strip()


def test_cloud_init_ends_well_with_a_node_that_serves(fleet: Fleet, node: MachineNode, agent: Agent) -> None:
    """N16, N17: status `done`; enabled, active and steering; nothing of the installation is left behind."""
    assert "status: done" in node.run(["cloud-init", "status"]).stdout
    assert node.run(["systemctl", "is-enabled", UNIT]).ok
    assert shown(node, UNIT, "ActiveState") == "active"
    assert agent.status()["steering"]["active"]
    assert node.tidegate("trust", "status").ok
    assert list(node.path("/var/tmp").rglob("tidegate-*")) == []


def test_a_daemon_of_the_first_boot_is_cached_from_its_first_pull(
    fleet: Fleet, node: MachineNode, agent: Agent
) -> None:
    """N8, N16: containerd, which started before cloud-init was done, trusts the node all the same."""
    trust = {entry["runtime"]: entry for entry in agent.status()["trust"]}

    assert trust["containerd"]["trusts"] is True
    assert trust["containerd"]["action"] == ""


def test_the_service_survives_a_reboot(fleet: Fleet, node: MachineNode, registry: Registry) -> None:
    """N16, N17, C4: after it the node steers by itself, before containerd starts, and has its cache."""
    image = fleet.images[SMALL]
    assert node.pull("skopeo", SMALL).contents == image.contents
    boot = node.path(BOOT_ID).read_text()

    node.run(["systemd-run", "--on-active=1", "systemctl", "reboot"]).or_raise()
    node.wait_restarted(boot, BOOT_S)
    agent = node.start_agent().wait_steering()
    registry.goes_dark()
    registry.forget()
    pull = node.pull("podman", SMALL)

    assert pull.contents == image.contents, pull.stderr
    assert registry.connections == []
    started = [
        int(shown(node, unit, name))
        for unit, name in (
            (UNIT, "ActiveEnterTimestampMonotonic"),
            ("containerd.service", "ExecMainStartTimestampMonotonic"),
        )
    ]
    assert started == sorted(started)
    assert agent.status()["cache"]["hits"]


def test_systemd_brings_back_what_was_killed_as_a_whole(
    fleet: Fleet, node: MachineNode, registry: Registry, agent: Agent
) -> None:
    """N4, N17: agent and supervisor get SIGKILL at once; pulls go direct until systemd has started both."""
    supervisor = agent.supervisor_pid
    image = fleet.images[SMALL]

    node.run(["systemctl", "kill", "--kill-whom=all", "--signal=KILL", UNIT]).or_raise()
    meanwhile = node.pull("skopeo", SMALL)

    assert meanwhile.contents == image.contents, meanwhile.stderr
    agent.wait_steering()
    assert agent.supervisor_pid != supervisor
    assert node.pull("podman", SMALL).contents == image.contents
    assert int(shown(node, UNIT, "NRestarts")) >= 1


def test_the_shipped_service_steers_with_ebpf(
    fleet: Fleet, node: MachineNode, registry: Registry, agent: Agent
) -> None:
    """N14, N17: a verifier of Linux 6.1 takes the programs from a service that has no CAP_PERFMON."""
    image = fleet.images[SMALL]
    assert node.pull("skopeo", SMALL).contents == image.contents
    node.write(
        f"/etc/systemd/system/{UNIT}.d/ebpf.conf", b"[Service]\nEnvironment=TIDEGATE_STEERING__BACKEND=ebpf\n"
    )

    node.run(["sh", "-c", f"systemctl daemon-reload && systemctl restart {UNIT}"], timeout_s=300).or_raise()
    agent.wait_steering()
    registry.goes_dark()

    assert agent.status()["steering"]["backend"] == "ebpf"
    assert node.pull("podman", SMALL).contents == image.contents


def test_what_the_services_could_do_is_little(
    fleet: Fleet, node: MachineNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """N17: `systemd-analyze security` says 2.0 or lower; the verdict is printed."""
    services: list[tuple[RemoteHost, str]] = [(node, UNIT), (fleet.central, "tidegate-central.service")]
    for host, unit in services:
        verdict = host.run(["systemd-analyze", "security", "--no-pager", unit], timeout_s=120).stdout

        exposure = re.search(r"Overall exposure level for .*: ([0-9.]+)", verdict)

        assert exposure, verdict
        with capsys.disabled():
            print(f"\n{exposure[0]}")  # noqa: T201 (what the run is to show)
        assert float(exposure[1]) <= EXPOSURE, verdict


def test_an_uninstalled_node_is_as_if_we_had_never_been(
    fleet: Fleet, node: MachineNode, registry: Registry, agent: Agent
) -> None:
    """N18: files, users, units, trust store, rules and addresses are those of before its installation."""
    image = fleet.images[SMALL]
    assert node.pull("podman", SMALL).contents == image.contents
    for name in ("uninstall", "installed.sh", "machine.sh"):
        node.write(f"/var/tmp/script/{name}", (CHECKOUT / "script" / name).read_bytes(), mode=0o755)

    node.run(["/var/tmp/script/uninstall"], timeout_s=300).or_raise()

    before, after = lines(node.path(BEFORE).read_text()), lines(reading(node))
    assert {"left": sorted(after - before), "gone": sorted(before - after)} == {"left": [], "gone": []}
    assert not [line for line in node.processes().values() if "tidegate" in line]
    registry.forget()
    until(lambda: node.pull("skopeo", SMALL).contents == image.contents, "a direct pull", within_s=1)
    assert "GET" in {request.method for request in registry.requests_for("manifest")}


def reading(node: MachineNode) -> str:
    """What the machine is made of now; compare `BEFORE`."""
    return node.run(["sh", "-c", READING.read_text()], timeout_s=300).or_raise().stdout


def lines(text: str) -> set[str]:
    return {line for line in text.splitlines() if not OF_ITS_OWN.search(line)}
