"""Starting the agent: never before it works (I3), never half, and never without saying what to type.

What must work end to end is the readiness gate against a real trust store and resolver, and each refusal as
an operator meets it: an exit code, a cause, and a next step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from lab import Agent, Completed, Lab, Node, Process, Registry, Resolver, ask
from lab.footprint import Footprint
from lab.waiting import until

SMALL = "docker.io/library/small:1"
STATE = "/var/lib/tidegate"
ADMIN = "http://127.0.0.1:9077"
WITHIN_SECONDS = 8.0  # the gate probes every 5 s, and each probe may take 2 s


def refused(answer: Completed, *, code: int = 1) -> str:
    """The words of a command that was refused as it should be."""
    assert answer.exit_code == code, answer
    assert "Traceback" not in answer.stderr
    cause, _, next_step = answer.stderr.strip().partition("\n")
    assert cause.startswith("tidegate: ")
    assert next_step.strip()
    return answer.stderr


def events(agent: Agent) -> list[dict[str, object]]:
    """The agent's log so far, without what the supervisor writes."""
    return [
        json.loads(line) for line in agent.log.splitlines() if line.startswith("{") and line.endswith("}")
    ]


def event(agent: Agent, name: str) -> dict[str, object]:
    """The last log line of that event; waits for the first."""
    return until(lambda: [each for each in events(agent) if each["event"] == name], f"{name!r} in the log")[
        -1
    ]


def bytes_come_directly(node: Node, registry: Registry) -> bool:
    registry.forget()
    assert node.pull("skopeo", SMALL).ok
    return bool(registry.requests_for("bytes"))


# The gate


def test_without_trust_the_agent_says_so_and_steers_once_it_is_trusted(
    node: Node, registry: Registry
) -> None:
    """I3, N7: no client that verifies certificates would get through, so none is redirected."""
    agent = node.start_agent()
    told = event(agent, "not steering")
    steering = agent.status()["steering"]

    assert "trust store does not hold" in str(told["reason"])
    assert "tidegate trust install" in str(told["next_step"])
    assert (steering["active"], steering["reason"]) == (False, told["reason"])
    assert agent.status()["trust"][0]["action"] == told["next_step"]
    assert ask(node, f"{ADMIN}/readyz").status == 503
    for _ in range(2):
        assert bytes_come_directly(node, registry)

    node.install_trust()
    agent.wait_steering(WITHIN_SECONDS)

    assert ask(node, f"{ADMIN}/readyz").status == 200
    assert bytes_come_directly(node, registry)
    assert not bytes_come_directly(node, registry)


def test_when_the_trust_is_removed_steering_ends_within_seconds(node: Node, registry: Registry) -> None:
    """I3, I1: rules go out when a later probe fails; what was cached comes from the registry again."""
    node.install_trust()
    agent = node.start_agent().wait_steering()
    assert bytes_come_directly(node, registry)
    assert not bytes_come_directly(node, registry)

    node.tidegate("trust", "remove").or_raise()
    event(agent, "not steering")

    assert bytes_come_directly(node, registry)
    assert agent.status()["steering"]["active"] is False
    assert agent.supervisor.running


def test_a_host_configured_later_is_not_steered_before_the_store_vouches_for_it(
    node: Node, registry: Registry
) -> None:
    """I3, N8: the old anchor rejects the new name, so its clients would fail."""
    node.install_trust()
    node.start_agent().wait_steering()
    node.agents[-1].stop()
    agent = node.start_agent('[[registry]]\nname = "r"\nhosts = ["registry.example.org"]\n')
    told = event(agent, "not steering")

    assert "does not hold this node's CA as it is now" in str(told["reason"])
    assert told["next_step"] == "sudo tidegate trust install"
    node.install_trust()
    agent.wait_steering(within_s=3)


def test_with_no_resolver_at_the_start_it_says_so_and_steers_when_there_is_one(
    node: Node, registry: Registry, resolver: Resolver
) -> None:
    """I3, N2: the probe needs nothing from outside; names are tried again until they resolve."""
    node.install_trust()
    resolver.goes_dark()
    agent = node.start_agent().wait_steering()
    told = event(agent, "registry name not resolved, trying again")
    status = agent.status()

    assert "no resolver answered" in str(told["cause"])
    assert status["dns"]["resolver_reachable"] is False
    assert status["steering"]["addresses"] == 0

    resolver.comes_back()
    until(lambda: agent.status()["steering"]["addresses"], "an address is steered", within_s=15)

    assert bytes_come_directly(node, registry)
    assert not bytes_come_directly(node, registry)


def test_where_no_registry_name_exists_it_says_so_and_steers_when_one_does(
    node: Node, registry: Registry, resolver: Resolver
) -> None:
    """I3, N2: a name that appears is steered from its first look-up on."""
    node.install_trust()
    config = 'default_registries = false\n[[registry]]\nname = "r"\nhosts = ["registry.example.org"]\n'
    agent = node.start_agent(config)
    told = event(agent, "registry name not resolved, trying again")
    node.install_trust()
    agent.wait_steering()

    assert told["name"] == "registry.example.org"
    assert "does not exist" in str(told["cause"])
    assert agent.status()["steering"]["addresses"] == 0

    resolver.answer(records={"registry.example.org": registry.addresses["registry-1.docker.io"]})
    node.dig("registry.example.org").or_raise()

    until(lambda: agent.status()["steering"]["addresses"] == 1, "its address is steered")


def test_a_node_without_ipv6_is_steered_too(lab: Lab, node: Node, registry: Registry) -> None:
    """N12: IPv6 is not there to be listened on, and nobody can ask for it."""
    node.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]).or_raise()
    assert node.run(["ip", "-6", "address"]).stdout == ""
    node.install_trust()
    node.start_agent().wait_steering()

    assert bytes_come_directly(node, registry)
    assert not bytes_come_directly(node, registry)


def test_where_loopback_has_no_ipv6_connections_over_it_go_direct(
    node: Node, registry: Registry, resolver: Resolver
) -> None:
    """N12, I1: there is nothing to redirect them to; IPv4 is steered as ever."""
    resolver.answer(dual_stack=True)
    node.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"]).or_raise()
    node.install_trust()
    agent = node.start_agent().wait_steering()
    for family in ("-6", "-4"):
        node.run(["curl", family, "-sS", "-o", "/dev/null", "https://registry-1.docker.io/v2/"]).or_raise()

    steered = agent.metrics()['tidegate_connections_total{outcome="intercepted",reason="steered"}']
    assert steered == 1


def test_it_steers_soon_after_its_start(node: Node) -> None:
    """I3: from exec to the log line that says so, five times; the benchmark holds the target of 1 s."""
    node.install_trust()
    took = []
    for _ in range(5):
        started = time.time()
        agent = node.start_agent()
        said = str(event(agent, "steering")["timestamp"])
        took.append(datetime.fromisoformat(said).timestamp() - started)
        assert agent.stop() == 0
    print(f"measured: exec to steering: {', '.join(f'{each:.2f}' for each in took)} s")  # noqa: T201 (pytest -s)

    assert statistics.median(took) < 3.0


# Refusals


LISTENER = """
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))):
    print("listens", flush=True)
    time.sleep(600)
"""


@contextmanager
def listener(node: Node, port: int) -> Iterator[Process]:
    with node.spawn([sys.executable, "-c", LISTENER, "127.0.0.1", str(port)], log="listener") as process:
        until(lambda: "listens" in process.log, "the listener")
        yield process


@contextmanager
def read_only(node: Node, folder: str) -> Iterator[None]:
    """A bind mount that even root cannot write through."""
    node.run(["mount", "--bind", folder, folder]).or_raise()
    node.run(["mount", "-o", "remount,bind,ro", folder]).or_raise()
    yield
    node.run(["umount", folder]).or_raise()


def test_a_second_agent_is_refused_and_told_of_the_first(node: Node, registry: Registry) -> None:
    """I4: two would fight for the rules; the first goes on untouched."""
    node.install_trust()
    first = node.start_agent().wait_steering()

    words = refused(node.tidegate("agent"))

    assert f"process {first.supervisor_pid} " in words
    assert f"kill {first.supervisor_pid}" in words
    assert first.wait_steering().supervisor.running


def test_an_unwritable_state_directory_is_refused(node: Node) -> None:
    """C3, I1: without a store it would only be in the way."""
    node.install_trust()
    before = Footprint.of(node)
    with read_only(node, STATE):
        words = refused(node.tidegate("agent"))

    assert f"the state directory {STATE} cannot be written" in words
    assert "install -d" in words
    assert Footprint.of(node) == before


def test_an_unwritable_runtime_directory_is_refused(node: Node) -> None:
    """I4: the lock that keeps a second agent away lives there."""
    node.write("/run/tidegate/.keep", "")
    with read_only(node, "/run/tidegate"):
        words = refused(node.tidegate("agent"))

    assert "/run/tidegate/agent.lock" in words
    assert "runtime_dir" in words


@pytest.mark.parametrize(
    ("port", "key"),
    [(8443, "TIDEGATE_STEERING__PORT"), (9077, "TIDEGATE_ADMIN__LISTEN")],
    ids=["steering", "admin"],
)
def test_a_taken_port_is_refused_and_nothing_stays_behind(node: Node, port: int, key: str) -> None:
    """I4: the message names the port and the variable that moves it."""
    node.install_trust()
    with listener(node, port):
        before = Footprint.of(node)
        words = refused(node.tidegate("agent"))

        assert str(port) in words
        assert key in words
        assert Footprint.of(node) == before


def test_an_unknown_key_is_wrong_usage(node: Node) -> None:
    """Exit code 2, the file, the key, and the key that was meant."""
    node.write("/etc/tidegate/agent.toml", "[steering]\nleese = '3s'\n")

    words = refused(node.tidegate("agent"), code=2)

    assert "/etc/tidegate/agent.toml" in words
    assert "steering.leese" in words
    assert "lease" in words.partition("\n")[2]


def test_a_dry_run_prints_the_rules_and_changes_nothing(node: Node) -> None:
    """I4: neither rules nor files; what it prints is what nft accepts."""
    before, files = Footprint.of(node), node.changed_files()
    kept = sorted(node.path(STATE).rglob("*"))

    plan = node.tidegate("agent", "--dry-run").or_raise().stdout

    assert (Footprint.of(node), node.changed_files()) == (before, files)
    assert sorted(node.path(STATE).rglob("*")) == kept
    assert not node.path("/run/tidegate").exists()
    assert "registry-1.docker.io" in plan
    assert "10.77.0.53" in plan
    rules = plan[plan.index("table inet tidegate {") :].replace("flags owner", "", 1)
    node.run(["nft", "--check", "--file", "-"], stdin=rules.encode()).or_raise()


# Asking it


def test_status_without_an_agent_says_how_to_start_one(node: Node) -> None:
    """Exit code 1, in both forms."""
    for arguments in (["status"], ["status", "--json"]):
        words = refused(node.tidegate(*arguments))
        assert "no agent is running" in words
        assert "tidegate agent" in words


def test_status_has_every_documented_field(node: Node) -> None:
    """DESIGN 9: scripts read it."""
    node.install_trust()
    status = node.start_agent().wait_steering().status()

    assert {"version", "pid", "uptime_s", "steering", "dns", "cache"} < set(status)
    assert {"active", "backend", "reason", "lease_s", "addresses"} < set(status["steering"])
    assert {"resolvers", "mode", "queries", "forwarded", "learned"} < set(status["dns"])
    usage = {"bytes", "blobs", "max_bytes", "evicted_bytes"}
    assert set(status["cache"]) == {"hits", "misses", "stale", "saved_bytes"} | usage
    assert [set(each) for each in status["upstreams"]] == [{"kind", "url", "healthy", "reason"}]
    assert [set(each) for each in status["trust"]] == [{"runtime", "pid", "trusts", "action"}]
    assert status["clients_spliced"] == []
    assert status["steering"]["backend"] == "nft"
    assert status["steering"]["lease_s"] == 3
    assert status["pid"] in node.processes()
    shown = node.tidegate("status").or_raise().stdout
    assert "on (nft)" in shown
    assert "10.77.0.53" in shown


def test_the_admin_listener_tells_health_readiness_and_metrics(node: Node) -> None:
    """DESIGN 10: names of other registries' dashboards, and every label that is known starts at 0."""
    node.install_trust()
    values = node.start_agent().wait_steering().metrics()
    scrape = ask(node, f"{ADMIN}/metrics")

    assert scrape.header("content-type").startswith("text/plain; version=0.0.4")
    for name in ("requests", "hits", "misses", "pulled_bytes", "pushed_bytes"):
        for kind in ("manifest", "blob"):
            assert values[f'registry_proxy_{name}_total{{type="{kind}"}}'] == 0
    for outcome, reason in (("intercepted", "steered"), ("spliced", "other_sni"), ("refused", "own_address")):
        assert values[f'tidegate_connections_total{{outcome="{outcome}",reason="{reason}"}}'] == 0
    for outcome in ("stale", "dropped", "unreachable"):
        assert values[f'tidegate_dns_queries_total{{outcome="{outcome}"}}'] == 0
    assert values['tidegate_steering_errors_total{cause="renewal"}'] == 0
    assert values['tidegate_bypassed_total{cause="error"}'] == 0
    assert values['tidegate_upstream_up{kind="direct",url=""}'] == 1
    assert values['tidegate_steering_active{backend="nft"}'] == 1
    assert values["tidegate_saved_bytes_total"] == 0
    assert values["tidegate_cache_bytes"] == 0
    assert "# TYPE tidegate_request_seconds histogram" in scrape.body.decode()
    assert ask(node, f"{ADMIN}/healthz").status == 200
    assert ask(node, f"{ADMIN}/readyz").status == 200
