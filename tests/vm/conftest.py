"""The fleet of this ring: namespaces by default, virtual machines with `--machines` (script/vm-test)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lab import Agent, Host, Lab, Node, Registry, until
from lab.central import Central
from lab.requirements import missing
from vm.fleet import Fleet

LINES_OF_A_LOG = 60
CA = "/etc/tidegate/central.pem"
running = pytest.StashKey[Lab]()
took = pytest.StashKey[dict[str, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--machines", action="store_true", help="play the scenarios on virtual machines")


def on_machines(config: pytest.Config) -> bool:
    return bool(config.getoption("--machines", False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A machine takes its time, and some of it is the emulator's."""
    if on_machines(config):
        for item in items:
            item.add_marker(pytest.mark.timeout(900, func_only=True))


@pytest.fixture(scope="session")
def session_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    machines = on_machines(request.config)
    if reason := ("" if machines else missing()):
        pytest.skip(reason)
    with Fleet() if machines else Lab() as lab:
        request.config.stash[running] = lab
        if isinstance(lab, Fleet):
            request.config.stash[took] = lab.times
        yield lab
        del request.config.stash[running]


@pytest.fixture
def lab(session_lab: Lab) -> Lab:
    session_lab.reset()
    return session_lab


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """For what only a machine can show."""
    if not on_machines(request.config):
        pytest.skip("needs virtual machines; run: script/vm-test")
    lab = request.getfixturevalue("lab")
    assert isinstance(lab, Fleet)
    return lab


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.node


@pytest.fixture
def registry(lab: Lab) -> Registry:
    return lab.registry


@pytest.fixture
def central(lab: Lab) -> Host:
    """The tier in front of the registries: started here in namespaces, by cloud-init on a machine."""
    if isinstance(lab, Fleet):
        return lab.central
    return lab.add_central().start()


@pytest.fixture
def power_off(lab: Lab) -> Callable[[Host], None]:
    """Ends a host at once, with all that runs on it; it is back with the next scenario."""

    def off(host: Host) -> None:
        if isinstance(lab, Fleet):
            lab.machines[host.name].stop()
        else:
            host.close()

    return off


@pytest.fixture
def agent(node: Node, registry: Registry, central: Host) -> Agent:
    """The node's agent, which steers and has the tier: set up here in namespaces, by cloud-init else."""
    config = ""
    if isinstance(central, Central):
        node.write(CA, central.ca)
        config = f'[[upstream]]\nkind = "central"\nurl = "{central.mirror}"\nca = "{CA}"\n'
    node.install_trust()
    agent = node.start_agent(config).wait_steering()
    # A machine that goes on from a snapshot finds its neighbours silent for a moment.
    until(lambda: settled(node, agent), "tier and registry are answered for", within_s=300)
    registry.forget()
    return agent


def settled(node: Node, agent: Agent) -> bool:
    """Whether the node has found its tier healthy, and its registry not dark: that one asks for a login."""
    asked = node.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "https://registry-1.docker.io/v2/"]
    )
    return asked.stdout == "401" and all(each["healthy"] for each in agent.status()["upstreams"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport | None]:
    """A failure comes with the end of every log of the lab."""
    report: pytest.TestReport = yield
    lab = item.config.stash.get(running, None)
    if report.failed and lab is not None:
        for name, text in lab.logs().items():
            if text:
                report.sections.append((f"lab: {name}", "\n".join(text.splitlines()[-LINES_OF_A_LOG:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How long it took until the machines were there."""
    if times := config.stash.get(took, None):
        terminalreporter.section("machines")
        for what, seconds in times.items():
            terminalreporter.write_line(f"{seconds:6.0f} s  {what}")
