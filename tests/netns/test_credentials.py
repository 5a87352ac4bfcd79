"""Configured logins: private images without a login of the client's, shared or not, and what never leaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import Agent, Image, Lab, Node, Pull, Registry

SMALL_1 = "docker.io/library/small:1"
PRIVATE_1 = "docker.io/alice/private:1"
BOBS_1 = "docker.io/bob/private:1"
ORIGIN = "https://registry-1.docker.io"
PASSWORD_FILE = "/etc/tidegate/login.password"
PASSWORD = "alice-secret"


def login(share: str = "node", *, registry: str = "docker.io") -> str:
    return (
        f'[[credential]]\nregistry = "{registry}"\nusername = "alice"\n'
        f'password_file = "{PASSWORD_FILE}"\nshare = "{share}"\n'
    )


def start(node: Node, config: str, *, password: str = f"{PASSWORD}\n", mode: int = 0o600) -> Agent:
    node.write(PASSWORD_FILE, password, mode=mode)
    node.install_trust()
    return node.start_agent(config).wait_steering()


@pytest.fixture(autouse=True)
def agents_live(node: Node) -> Iterator[None]:
    yield
    assert node.agents[-1].supervisor.running, node.agents[-1].log[-4000:]


def pulled(pull: Pull, image: Image) -> bool:
    assert pull.ok, pull.stderr
    assert pull.brought(image)
    return True


def token_requests(registry: Registry, scheme: str) -> int:
    return sum(request.authorization == scheme for request in registry.requests_for("token"))


@pytest.mark.parametrize(("first", "second"), [("skopeo", "ctr"), ("ctr", "podman"), ("dockerd", "skopeo")])
def test_a_private_image_is_pulled_without_a_login_of_the_clients(
    lab: Lab, node: Node, registry: Registry, first: str, second: str
) -> None:
    """C17, C2, C7, I6: by one client cold, by another from the cache, by both with the registry dark."""
    image = lab.images[PRIVATE_1]
    agent = start(node, login())
    for client in (first, second):
        node.start_daemon_of(client)
    registry.forget()

    assert pulled(node.pull(first, PRIVATE_1), image)
    assert {request.authorization for request in registry.requests_for("bytes")} == {""}
    assert token_requests(registry, "Basic") == 1
    registry.forget()
    assert pulled(node.pull(second, PRIVATE_1), image)

    assert registry.requests_for("bytes") == []
    assert agent.status()["credentials"] == [
        {
            "registry": "docker.io",
            "username": "alice",
            "share": "node",
            "working": True,
            "reason": "",
            "action": "",
        }
    ]
    registry.goes_dark()
    for client in (first, second):
        assert pulled(node.pull(client, PRIVATE_1), image)
