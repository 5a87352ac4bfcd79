"""The shipped unit with the back ends that nobody owns: what its hardening lets through, and ExecStopPost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import Lab, until
from lab.booted import Booted, missing
from netns.test_units import AGENT, COPY, INSTALL, copy_checkout, restart, status, steers

CONFIG = "/etc/tidegate/agent.toml"
OURS = "nft list tables; ipset list -name; for x in '' -legacy; do iptables$x-save; ip6tables$x-save; done"
DROP_IN = """[Service]
AmbientCapabilities=CAP_NET_RAW
CapabilityBoundingSet=CAP_NET_RAW
ExecStartPre=+/bin/sh -c 'touch /run/xtables.lock; chmod 0644 /run/xtables.lock'
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machine(session_lab: Lab) -> Iterator[Booted]:
    """A node that is installed."""
    if reason := missing():
        pytest.skip(reason)
    session_lab.reset()
    copy_checkout(session_lab.node, COPY)
    with Booted(session_lab.node) as machine:
        machine.run(*INSTALL).or_raise()
        yield machine


def ours(machine: Booted) -> list[str]:
    """Every rule, set and table with our name."""
    listed = machine.run("sh", "-c", f"({OURS}) 2>/dev/null").stdout
    return [line for line in listed.splitlines() if "tidegate" in line]


def steers_by(machine: Booted, backend: str) -> None:
    machine.node.write(CONFIG, f'[steering]\nbackend = "{backend}"\n')
    restart(machine)
    until(lambda: status(machine).get("steering", {}).get("backend") == backend, "that back end", within_s=40)
    steers(machine)


def test_the_unit_as_shipped_can_steer_without_an_owner_and_leaves_nothing(machine: Booted) -> None:
    """N14, N17, I4: also when everything is killed, by ExecStopPost."""
    steers_by(machine, "nft-lease")
    killed_and_cleaned_up(machine)


def test_without_the_right_that_iptables_needs_the_refusal_says_what_to_do(machine: Booted) -> None:
    """N15, N17: the unit has no CAP_NET_RAW; the log points to the page with the drop-in."""
    machine.node.write(CONFIG, '[steering]\nbackend = "iptables"\n')
    machine.systemctl("reset-failed", AGENT)
    machine.run("systemctl", "restart", AGENT)
    told = machine.run("journalctl", "-u", AGENT, "-n", "40", "-o", "cat").stdout

    assert "no right to change rules with iptables" in told
    assert "docs/operations/backends.md" in told


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_iptables_can_steer_with_the_documented_drop_in(machine: Booted, flavour: str) -> None:
    """N14, N17, I4: as docs/operations/backends.md says; killed as well, it leaves nothing."""
    folder = f"/etc/systemd/system/{AGENT}.d"
    machine.run("mkdir", "-p", folder).or_raise()
    machine.node.write(f"{folder}/iptables.conf", DROP_IN)
    machine.systemctl("daemon-reload")
    if flavour == "legacy":
        machine.run("sh", "-c", "rm /usr/sbin/iptables-nft* /usr/sbin/ip6tables-nft*").or_raise()
    steers_by(machine, "iptables")
    killed_and_cleaned_up(machine)


def killed_and_cleaned_up(machine: Booted) -> None:
    assert ours(machine)
    machine.systemctl("kill", "--signal=KILL", "--kill-who=all", AGENT)
    machine.systemctl("stop", AGENT)
    until(lambda: not ours(machine), "ExecStopPost took everything out", within_s=20)
