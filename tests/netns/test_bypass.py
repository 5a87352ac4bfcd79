"""The bypass detector: registry connections that went past the agent, by cause, met by real clients (N10)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from lab import Agent, Lab, Node, Registry, Resolver
from lab.footprint import Footprint
from lab.waiting import until

SMALL = "docker.io/library/small:1"
REGISTRY = "registry-1.docker.io"
ELSEWHERE = "203.0.113.99"  # serves TLS, and no answer names it for a registry
WATCH = "tidegate_watch"
LATE = """
import socket, ssl, subprocess, sys
address, host = sys.argv[1:]
plain = socket.create_connection((address, 443))
subprocess.run(["dig", "+short", host], check=True)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.wrap_socket(plain, server_hostname=host)
"""


@pytest.fixture
def agent(node: Node) -> Iterator[Agent]:
    node.install_trust()
    yield node.start_agent().wait_steering()


def bypassed(agent: Agent) -> dict[str, Any]:
    """What `status` counts beyond zero, by cause."""
    return {cause: count for cause, count in agent.status()["bypassed"]["causes"].items() if count}


def said_hello(node: Node, *more: str, host: str = REGISTRY) -> None:
    """curl got as far as TLS; whether the answer pleases it is not what counts."""
    node.run(["curl", "-sSk", "-o", "/dev/null", *more, f"https://{host}/v2/"]).or_raise()


def once(agent: Agent, cause: str) -> dict[str, Any]:
    """The one connection that was noticed, for this cause."""
    until(lambda: bypassed(agent), "a bypass is noticed")
    assert bypassed(agent) == {cause: 1}
    (recent,) = agent.status()["bypassed"]["recent"]
    assert recent["cause"] == cause
    return dict(recent)


def test_every_cause_starts_at_zero_and_a_steered_pull_is_no_bypass(
    node: Node, agent: Agent, registry: Registry
) -> None:
    """N10: neither the client's connections nor the agent's own are counted, nor anybody else's names."""
    assert node.pull("skopeo", SMALL).ok
    assert registry.requests_for("bytes")
    said_hello(node, host="www.example.org")
    said_hello(node, "--resolve", f"{REGISTRY}:443:{ELSEWHERE}")

    once(agent, "resolved_elsewhere")
    counted = {name for name in agent.metrics() if name.startswith("tidegate_bypassed_total")}
    for cause in ("paused", "not_steering", "not_learned", "not_redirected", "forwarded", "distrusted"):
        assert f'tidegate_bypassed_total{{cause="{cause}"}}' in counted


def test_a_name_resolved_elsewhere_is_noticed_with_who_it_was(node: Node, agent: Agent) -> None:
    """N10: DNS over TLS, over HTTPS, a fixed address: no look-up passes the agent, its name does."""
    program = f"import ssl,socket,time; s=socket.create_connection(('{ELSEWHERE}',443)); "
    program += "c=ssl._create_unverified_context().wrap_socket(s,server_hostname='registry-1.docker.io'); "
    with node.spawn([sys.executable, "-c", program + "time.sleep(600)"], log="fixed") as client:
        recent = once(agent, "resolved_elsewhere")
        pid = client.pid

    assert (recent["host"], recent["address"]) == (REGISTRY, f"{ELSEWHERE}:443")
    assert recent["pid"] == pid
    assert "python" in recent["exe"]
    assert agent.metrics()['tidegate_bypassed_total{cause="resolved_elsewhere"}'] == 1
    shown = node.tidegate("status").or_raise().stdout
    assert "1 resolved_elsewhere" in shown
    assert f"pid {pid}" in shown


@pytest.mark.slow
def test_over_ipv6_too(node: Node, agent: Agent) -> None:
    """N10, N12: an address that nobody named, of the other family."""
    said_hello(node, "--resolve", f"{REGISTRY}:443:[2001:db8:cd::99]")

    assert once(agent, "resolved_elsewhere")["address"] == "[2001:db8:cd::99]:443"


def test_while_paused_every_connection_counts_as_such(node: Node, agent: Agent, registry: Registry) -> None:
    """N10: as many as the registry saw."""
    node.tidegate("pause").or_raise()
    registry.forget()
    said_hello(node)
    said_hello(node)

    until(lambda: bypassed(agent) == {"paused": 2}, "both are noticed")


@pytest.mark.slow
def test_an_agent_that_may_not_steer_counts_too(node: Node) -> None:
    """N10, I3: without trust nothing is steered, and pulls are what tells an operator that it matters."""
    agent = node.start_agent()
    until(lambda: "not steering" in agent.log, "the agent says that it does not steer")
    said_hello(node)

    once(agent, "not_steering")


def test_an_address_learned_too_late_is_told_from_one_that_nobody_named(
    node: Node, agent: Agent, resolver: Resolver
) -> None:
    """N10: connected first, resolved through the agent afterwards."""
    resolver.answer(records={"late.gcr.io": [IPv4Address(ELSEWHERE)]})
    node.run([sys.executable, "-c", LATE, ELSEWHERE, "late.gcr.io"]).or_raise()

    once(agent, "not_learned")


def test_a_client_left_alone_for_want_of_trust_counts_with_its_reason(
    lab: Lab, node: Node, agent: Agent
) -> None:
    """N10, N9: it was redirected, and spliced."""
    node.path("/srv/own").mkdir()
    elsewhere = ["unshare", "--mount", "sh", "-ec", 'mount --bind /srv/own /etc/ssl/certs; exec "$@"', "-"]
    node.run([*elsewhere, "curl", "-sSk", "-o", "/dev/null", f"https://{REGISTRY}/v2/"]).or_raise()

    recent = once(agent, "other_store")
    assert recent["exe"].endswith("curl")
    assert recent["host"] == REGISTRY


def test_the_table_that_watches_goes_with_the_agent(node: Node) -> None:
    """I4: however it ends."""
    before = Footprint.of(node)
    node.install_trust()
    agent = node.start_agent().wait_steering()
    assert WATCH in node.run(["nft", "list", "tables"]).stdout
    agent.kill()
    until(lambda: WATCH not in node.run(["nft", "list", "tables"]).stdout, "the kernel takes it away")

    agent.wait_steering()
    assert WATCH in node.run(["nft", "list", "tables"]).stdout
    assert agent.stop() == 0
    until(lambda: Footprint.of(node) == before, "nothing is left")
