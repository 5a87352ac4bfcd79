"""Nodes set up as for docker-registry-proxy, and an operator who has its variables, find a central tier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from lab import Central, Completed, Lab, Node, Registry

SMALL = "docker.io/library/small:1"
PRIVATE = "docker.io/alice/private:1"
DROP_IN = "/etc/systemd/system/{}.service.d/tidegate-central.conf"
ANCHOR = "/usr/local/share/ca-certificates/tidegate-central.crt"
PASSWORD = "alice-secret"
NOT_THE_SCRIPTS = re.compile(r"containerd/|docker/|/[0-9a-f]{8}\.\d+$")


@pytest.fixture
def central(lab: Lab) -> Central:
    return lab.add_central()


def run_script(node: Node, central: Central, page: str, *, before: str = "") -> Completed:
    """What the page itself tells operators to type."""
    return node.run(["bash", "-c", f"set -o pipefail; curl -fsS {central.proxy}/{page} | {before} bash"])


def environment_of(node: Node, unit: str) -> Mapping[str, str]:
    """What systemd would give the unit by the drop-in."""
    text = node.path(DROP_IN.format(unit)).read_text()
    return dict(re.findall(r'^Environment="([^="]+)=([^"]*)"$', text, re.MULTILINE))


def files(node: Node) -> dict[str, str]:
    """Every file that differs from the machine's, with what is in it; links by what they lead to.

    What daemons keep in /etc is left out, and so are hash links, of which a store of one CA has two at times.
    """
    names = [name for name in node.changed_files() if not NOT_THE_SCRIPTS.search(name)]
    script = "import sys\nfor name in sys.argv[1:]: print(name, ascii(open(name).read()))"
    present = node.run(["find", *names, "-maxdepth", "0", "-xtype", "f", "-size", "-100k"]).stdout.split()
    listed = node.python(script, *present).or_raise().stdout.splitlines()
    return dict(line.split(" ", 1) for line in listed)


def peers(registry: Registry, *resources: str) -> set[str]:
    found = (ip_address(request.peer[0]) for request in registry.requests_for(*resources))
    return {str(getattr(each, "ipv4_mapped", None) or each) for each in found}


def test_a_docker_client_set_up_by_the_script_pulls_through_connect_and_undo_leaves_nothing(
    lab: Lab, node: Node, registry: Registry, central: Central
) -> None:
    """T1: `curl .../setup/systemd | bash`, twice; what it cannot do it says; then as if it had never been."""
    central.start()
    before = files(node)

    first = run_script(node, central, "setup/systemd")
    assert first.ok, first.stderr
    assert "TO DO: systemd does not run here" in first.stderr
    after_first = files(node)
    second = run_script(node, central, "setup/systemd")
    assert second.ok, second.stderr
    assert "nothing had to be changed" in second.stdout
    assert "TO DO" not in second.stderr
    assert files(node) == after_first

    environment = environment_of(node, "docker")
    assert environment == environment_of(node, "containerd")
    node.start_dockerd(environment)
    pull = node.pull("dockerd", SMALL)
    assert pull.brought(lab.images[SMALL]), pull.stderr
    assert peers(registry, "ping", "manifest", "bytes") == {str(central.interfaces[0].ip)}
    assert central.status()["cache"]["misses"] > 0

    undone = run_script(node, central, "setup/undo")
    assert undone.ok, undone.stderr
    again = run_script(node, central, "setup/undo")
    assert "there was nothing to take away" in again.stdout
    assert sorted(node.path("/etc/ssl/certs").glob("tidegate*")) == []
    assert files(node) == before
    assert not node.path("/etc/systemd/system/docker.service.d").exists()
    a_line = central.ca.decode().splitlines()[4]
    assert node.run(["grep", "-rlF", a_line, "/etc"]).stdout == ""


def test_the_script_changes_nothing_where_it_cannot_do_its_work(node: Node, central: Central) -> None:
    """T1: not as somebody else than root, nor with a NO_PROXY that would break out of its line."""
    central.start()
    before = files(node)

    as_nobody = run_script(node, central, "setup/systemd", before="setpriv --reuid=65534 --clear-groups")
    odd = run_script(node, central, "setup/systemd", before="NO_PROXY='x\"\nExecStart=/bin/false'")

    assert "root is needed" in as_nobody.stderr
    assert "NO_PROXY is no list" in odd.stderr
    assert (as_nobody.ok, odd.ok) == (False, False)
    assert files(node) == before


@pytest.mark.parametrize("given", ["variable", "file"])
def test_a_private_image_needs_no_login_and_the_password_is_nowhere(
    lab: Lab, node: Node, registry: Registry, central: Central, given: str
) -> None:
    """T1, C17: AUTH_REGISTRIES, other delimiters; log, metrics, status, argv and environments are clean."""
    entries = f"quay.io|bob|bob-secret,auth.docker.io|alice|{PASSWORD}"
    env = {"AUTH_REGISTRIES_DELIMITER": ",", "AUTH_REGISTRY_DELIMITER": "|", "REGISTRIES": "quay.io"}
    if given == "variable":
        env["AUTH_REGISTRIES"] = entries
    else:
        central.write("/etc/tidegate/auth-registries", entries + "\n", mode=0o600)
        env["AUTH_REGISTRIES_FILE"] = "/etc/tidegate/auth-registries"
    central.start(env=env)
    run_script(node, central, "setup/systemd").or_raise()
    node.start_dockerd(environment_of(node, "docker"))

    pull = node.pull("dockerd", PRIVATE)

    assert pull.brought(lab.images[PRIVATE]), pull.stderr
    assert {request.authorization for request in registry.requests_for("token")} >= {"Basic"}
    assert central.log.count('"event":"served"') > 0
    told = [central.log, central.admin("metrics"), str(central.status()), *central.logs().values()]
    for pid in central.processes():
        for part in ("cmdline", "environ"):
            told.append(central.path(f"/proc/{pid}/{part}").read_bytes().decode(errors="replace"))
    told += [*node.logs().values(), pull.stderr]
    for secret in (PASSWORD, "bob-secret", "YWxpY2U6", "eyJ", "Bearer "):
        assert not [text for text in told if secret in text], secret
    assert "AUTH_REGISTRIES=" not in "".join(told)


def test_the_variables_of_docker_registry_proxy_are_taken_or_named(central: Central) -> None:
    """T1: what is translated is in effect, the rest is in a warning each; our own variables win."""
    central.start(
        env={
            "REGISTRIES": "registry.example.net quay.io",
            "ALLOW_PUSH": "true",
            "DISABLE_IPV6": "true",
            "CACHE_MAX_SIZE": "1g",
            "TIDEGATE_CACHE__MAX_SIZE": "2GiB",
            "MANIFEST_CACHE_PRIMARY_REGEX": "stable",
            "VERIFY_SSL": "false",
            "MANIFEST_CACHE_PRIMARY_TIEM": "10m",
        }
    )

    status = central.status()

    assert "registry.example.net" in status["hosts"]
    assert status["hosts"].count("quay.io") == 1
    assert status["pushes"]
    assert status["cache"]["max_bytes"] == 2 << 30
    for name in ("MANIFEST_CACHE_PRIMARY_REGEX", "VERIFY_SSL"):
        assert name in central.log
    assert "MANIFEST_CACHE_PRIMARY_TIEM is no variable" in central.log
