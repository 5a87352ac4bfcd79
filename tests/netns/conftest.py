"""Fixtures of the namespace ring: one lab a session, new nodes and healthy surroundings for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import Lab, Node, Registry, Resolver
from lab.requirements import missing

LINES_OF_A_LOG = 60
running = pytest.StashKey[Lab]()


@pytest.fixture(scope="session")
def session_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab, started once. Tests take `lab`, which is this one made new."""
    if reason := missing():
        pytest.skip(reason)
    with Lab() as lab:
        request.config.stash[running] = lab
        yield lab
        del request.config.stash[running]


@pytest.fixture
def lab(session_lab: Lab) -> Lab:
    session_lab.reset()
    return session_lab


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.node


@pytest.fixture
def registry(lab: Lab) -> Registry:
    return lab.registry


@pytest.fixture
def resolver(lab: Lab) -> Resolver:
    return lab.resolver


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
