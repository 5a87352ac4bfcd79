"""The central tier as systemd runs it: with no capability, in a sandbox, back after a kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import Central, Lab, until
from lab.booted import Booted, missing
from netns.test_units import COPY, INSTALL, copy_checkout

UNIT = "tidegate-central.service"
ENVIRONMENT = "/etc/systemd/system/tidegate-central.service.d/test.conf"


@pytest.fixture
def machine(lab: Lab) -> Iterator[Booted]:
    """A central tier, installed as an operator does it."""
    if reason := missing():
        pytest.skip(reason)
    node = lab.add_central()
    copy_checkout(node, COPY)
    node.write("/etc/tidegate/central.toml", f'[mirror]\nnames = ["{node.domain_name}"]\n')
    with Booted(node) as machine:
        machine.run(*INSTALL, "--role", "central").or_raise()
        yield machine


def serves(machine: Booted) -> None:
    until(
        lambda: machine.run("curl", "-sf", "http://127.0.0.1:9078/readyz").stdout == "serving\n",
        "the tier serves",
        within_s=20,
    )


def test_the_service_serves_without_any_right_and_comes_back_when_it_is_killed(
    lab: Lab, machine: Booted
) -> None:
    """N17, T3, C17: a client pulls by the mirror; the sandbox lets AUTH_REGISTRIES go; SIGKILL; stop."""
    central = machine.node
    assert isinstance(central, Central)
    serves(machine)
    assert '"role":"central"' in machine.run("tidegate", "status", "--json").or_raise().stdout
    machine.node.write(
        ENVIRONMENT, "[Service]\nEnvironment=AUTH_REGISTRIES=auth.docker.io:alice:alice-secret\n"
    )
    machine.run("systemctl", "daemon-reload").or_raise()
    machine.run("systemctl", "restart", UNIT).or_raise()
    serves(machine)
    pid = machine.show(UNIT, "MainPID")
    status = machine.run("cat", f"/proc/{pid}/status").or_raise().stdout
    environment = machine.run("cat", f"/proc/{pid}/environ").or_raise().stdout

    client = lab.node
    client.write("/usr/local/share/ca-certificates/central.crt", central.ca)
    client.run(["update-ca-certificates"]).or_raise()
    pull = client.pull("skopeo", "docker.io/alice/private:1", env={"HTTPS_PROXY": central.proxy})
    assert pull.contents == lab.images["docker.io/alice/private:1"].contents, pull.stderr
    assert "CapEff:\t0000000000000000" in status
    assert "alice-secret" not in environment

    machine.run("kill", "-KILL", pid).or_raise()
    until(lambda: machine.show(UNIT, "MainPID") not in (pid, "0"), "it is started again", within_s=20)
    serves(machine)
    machine.run("systemctl", "stop", UNIT).or_raise()
    assert machine.show(UNIT, "Result") == "success"
