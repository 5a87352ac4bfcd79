"""`tidegate reload` and SIGHUP: registries come and go while pulls run, and nothing of them is dropped."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from lab import SINGLE, Agent, Completed, Fault, Lab, Node, OwnRegistry, Pull, Recipe, Registry, ask, until
from lab.agent import CONFIG

SMALL = "docker.io/library/small:1"
TOOL = "quay.io/team/tool:1"
OWN = "registry.local.test"
CA = "/etc/tidegate/own-ca.pem"
WITH_OWN = f'[[registry]]\nname = "own"\nhosts = ["{OWN}"]\nca = "{CA}"\n'
WITHOUT_DOCKER = 'default_registries = false\n[[registry]]\nname = "quay.io"\nhosts = ["quay.io"]\n'
HUB = "https://registry-1.docker.io/v2/"

TWO_REQUESTS = """
import http.client, signal, ssl
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
connection = http.client.HTTPSConnection(
    "registry-1.docker.io", context=ssl.create_default_context(), timeout=20
)
for _ in range(2):
    connection.request("GET", "/v2/")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, answer.headers["X-Tidegate-Cache"], flush=True)
    signal.sigwait([signal.SIGUSR1])
"""


@pytest.fixture
def agent(node: Node) -> Iterator[Agent]:
    node.install_trust()
    agent = node.start_agent().wait_steering()
    yield agent
    assert agent.supervisor.running, agent.log[-4000:]


@pytest.fixture
def own(lab: Lab, node: Node) -> OwnRegistry:
    own = lab.add_own_registry(OWN)
    own.serve(443)
    node.write(CA, own.authority.anchor)
    return own


def reload(node: Node, config: str) -> Completed:
    node.write(CONFIG, config)
    return node.tidegate("reload", "--config", CONFIG)


def cache_of(node: Node, url: str) -> str:
    """What the agent says of its answer; "" where another answered."""
    return ask(node, url, "--insecure").cache


def events(agent: Agent, name: str) -> list[dict[str, object]]:
    lines = (json.loads(line) for line in agent.log.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == name]


def test_an_added_host_is_steered_once_the_trust_store_covers_it(
    lab: Lab, node: Node, own: OwnRegistry, agent: Agent
) -> None:
    """C1, I3, N8: the key stays; until the reissued certificate is trusted, all others go on and it waits."""
    image = own.publish(SINGLE, "team/single", port=443)
    key = node.path("/var/lib/tidegate/ca/ca.key").read_bytes()

    done = reload(node, WITH_OWN).or_raise()

    assert f"added    {OWN}\n" in done.stdout
    assert f"waiting  {OWN}:" in done.stdout
    assert "sudo tidegate trust install" in done.stdout
    status = agent.status()
    assert (OWN in status["hosts"], status["hosts_waiting"]) == (False, [OWN])
    assert status["trust"][0]["action"] == "sudo tidegate trust install"
    for _ in range(3):
        assert cache_of(node, f"https://{OWN}/v2/") == ""
        assert ask(node, HUB).cache == "bypass"
    assert agent.status()["steering"]["active"]

    node.install_trust()
    until(lambda: OWN in agent.status()["hosts"], "the new host is steered", within_s=15)
    assert ask(node, f"https://{OWN}/v2/").cache == "bypass"
    assert ask(node, HUB).cache == "bypass"
    assert node.path("/var/lib/tidegate/ca/ca.key").read_bytes() == key
    pull = node.pull("skopeo", f"{OWN}/team/single:1")
    assert pull.contents == image.contents, pull.stderr
    assert agent.status()["hosts_waiting"] == []
    assert not events(agent, "not steering")


def test_a_removed_host_is_direct_at_once_and_its_connections_end_well(
    node: Node, registry: Registry, agent: Agent
) -> None:
    """C1: what is open goes on being answered; what comes later has nothing to do with the agent."""
    speaking = node.spawn(["python3", "-c", TWO_REQUESTS], log="two-requests")
    until(lambda: "401 bypass" in speaking.log, "the first answer")
    before = agent.status()["steering"]["addresses"]

    done = reload(node, WITHOUT_DOCKER).or_raise()
    assert "removed  registry-1.docker.io\n" in done.stdout
    assert "waiting" not in done.stdout
    assert agent.status()["hosts"] == ["quay.io"]
    assert agent.status()["steering"]["addresses"] < before
    assert cache_of(node, HUB) == ""

    speaking.kill(signal.SIGUSR1)
    until(lambda: speaking.log.count("401 bypass") == 2, "the second answer on the same connection")
    speaking.kill(signal.SIGUSR1)
    assert speaking.wait(20) == 0
    for trusted in (False, True):
        assert ask(node, "https://quay.io/v2/").cache == "bypass"
        if not trusted:
            node.install_trust()


def test_a_runtime_that_has_read_the_old_certificate_stays_cached_for_the_old_hosts(
    lab: Lab, node: Node, registry: Registry, own: OwnRegistry, agent: Agent
) -> None:
    """N8, N9: the reissued one has the same key. For the new host it is left alone, and loses no pull."""
    image = own.publish(SINGLE, "team/single", port=443)
    node.write("/etc/containerd/certs.d/registry.local.test/ca.crt", own.authority.anchor)
    hosts = (
        f'server = "https://{OWN}"\n[host."https://{OWN}"]\n  ca = "/etc/containerd/certs.d/{OWN}/ca.crt"\n'
    )
    node.write(f"/etc/containerd/certs.d/{OWN}/hosts.toml", hosts)
    cri = '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'
    node.start_containerd(cri)
    assert node.pull("cri", SMALL).contents == lab.images[SMALL].contents

    reload(node, WITH_OWN).or_raise()
    node.install_trust()
    until(lambda: not agent.status()["hosts_waiting"], "the new host is steered", within_s=15)
    registry.forget()

    assert node.pull("cri", SMALL).contents == lab.images[SMALL].contents
    assert registry.requests_for("bytes") == []
    spliced = 'tidegate_connections_total{outcome="spliced",reason="not_restarted"}'
    assert agent.metrics().get(spliced, 0) == 0
    assert node.pull("cri", f"{OWN}/team/single:1").contents == image.contents
    assert agent.metrics()[spliced] > 0


@pytest.mark.parametrize("how", ["command", "SIGHUP"])
def test_a_transfer_runs_through_three_reloads(
    lab: Lab, node: Node, registry: Registry, agent: Agent, how: str
) -> None:
    """C1, I1: also through one that takes its own registry away; every byte comes once."""
    image = registry.publish(Recipe(name="slow", layers=(4_000_000,), with_busybox=False), "library/slow")
    registry.fault(Fault(on="bytes", times=None, bytes_per_s=1_000_000))
    registry.forget()
    pulling = node.start_pull("skopeo", "docker.io/library/slow:1")
    until(lambda: registry.requests_for("bytes"), "the layer is on its way")

    for number, config in enumerate((WITHOUT_DOCKER, "[push]\nallow = true\n", WITHOUT_DOCKER), 1):
        if how == "command":
            reload(node, config).or_raise()
        else:
            node.write(CONFIG, config)
            agent.supervisor.kill(signal.SIGHUP)
            until(lambda: len(events(agent, "reloaded")) == number, f"reload {number}")  # noqa: B023 (waited for)
    assert pulling.process.running
    pull: Pull = pulling.wait()

    assert pull.contents == image.contents, pull.stderr
    digests = [request.path for request in registry.requests_for("bytes")]
    assert len(digests) == len(set(digests)) == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('[[registry]]\nname = "x"\n', "has no hosts"),
        ("nonsense = true\n", "nonsense"),
        (
            '[steering]\nport = 9443\n[cache]\nstale_max = "1d"\n',
            "cannot change steering.port, cache.stale_max",
        ),
        (WITH_OWN, f"ls -l {CA}"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused_and_the_old_one_goes_on(
    lab: Lab, node: Node, agent: Agent, config: str, told: str
) -> None:
    """C1, DESIGN 8, DESIGN 9: exit code 2, the cause, and what to type; by SIGHUP the log says it."""
    hosts = agent.status()["hosts"]

    refused = reload(node, config)
    agent.supervisor.kill(signal.SIGHUP)
    until(lambda: events(agent, "reload refused, the old configuration goes on"), "the refusal is logged")

    assert refused.exit_code == 2, refused
    cause, _, next_step = refused.stderr.partition("\n")
    assert told in refused.stderr
    assert cause.startswith("tidegate: ")
    assert next_step.strip()
    node.write(CONFIG, "")  # the command line finds the agent by it, too
    assert agent.status()["hosts"] == hosts
    assert node.pull("skopeo", SMALL).contents == lab.images[SMALL].contents
    assert ask(node, HUB).cache == "bypass"


def test_what_was_reloaded_outlives_a_crash_and_not_a_stop(
    node: Node, own: OwnRegistry, agent: Agent
) -> None:
    """C1, I1: not the file as it is by now, which nobody accepted."""
    reload(node, WITHOUT_DOCKER).or_raise()
    node.install_trust()
    with node.process(agent.pid) as process:
        node.write(CONFIG, "this is no configuration")
        process.kill(signal.SIGKILL)
    until(lambda: len(events(agent, "steering")) == 2, "another agent steers", within_s=20)
    node.write(CONFIG, "")
    assert agent.status()["hosts"] == ["quay.io"]

    assert agent.stop() == 0
    again = node.start_agent()
    node.install_trust()
    assert "ghcr.io" in again.wait_steering().status()["hosts"]
    agent.supervisor = again.supervisor  # the one that is to run at the end


def test_modes_and_logins_follow_a_reload(lab: Lab, node: Node, registry: Registry, agent: Agent) -> None:
    """N11, C17: a sinkhole comes and goes; a login is used from then on."""
    intra = lab.intra()
    own = '[[registry]]\nname = "registry.intra.test"\nhosts = ["registry.intra.test"]\n'
    node.write("/etc/tidegate/password", intra.users["alice"].password, mode=0o600)
    login = (
        '[[credential]]\nregistry = "registry.intra.test"\nusername = "alice"\n'
        'password_file = "/etc/tidegate/password"\nshare = "node"\n'
    )
    reload(node, own).or_raise()
    node.install_trust()
    until(lambda: not agent.status()["hosts_waiting"], "it is steered")
    reference = "registry.intra.test/team/private:1"
    assert not node.pull("skopeo", reference).ok

    reload(node, own + login + '[dns]\nmode = "sinkhole"\n').or_raise()
    assert node.dig("+short", "registry-1.docker.io").stdout.split() == ["127.74.0.1"]
    for image in (reference, SMALL):
        pull = node.pull("skopeo", image)
        assert pull.contents == lab.images[image].contents, pull.stderr

    assert "changed  dns.mode" in reload(node, own + login).or_raise().stdout
    assert node.dig("+short", "registry-1.docker.io").stdout.split() != ["127.74.0.1"]
    registry.goes_dark()
    assert node.pull("podman", SMALL).contents == lab.images[SMALL].contents


def test_reload_without_an_agent_says_so(node: Node) -> None:
    """DESIGN 9: exit code 1."""
    answer = reload(node, "")

    assert answer.exit_code == 1
    assert "no agent is running" in answer.stderr
