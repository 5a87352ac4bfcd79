"""Configured logins: private images without a login of the client's, shared or not, and what never leaks."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Agent, Fault, Image, Lab, Node, Pull, Recipe, Registry, User, ask, until

SMALL_1 = "docker.io/library/small:1"
PRIVATE_1 = "docker.io/alice/private:1"
BOBS_1 = "docker.io/bob/private:1"
BOBS = Recipe(name="bobs", layers=(70_000,), with_busybox=False)
ORIGIN = "https://registry-1.docker.io"
PASSWORD_FILE = "/etc/tidegate/login.password"
PASSWORD = "alice-secret"
CHECKOUT = Path(__file__).parents[2]


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


INTRA = '[[registry]]\nname = "registry.intra.test"\nhosts = ["registry.intra.test"]\n'


@pytest.mark.parametrize("client", ["skopeo", "ctr", "dockerd"])
@pytest.mark.parametrize("kind", ["gitlab", "basic"])
def test_other_kinds_of_logins_are_as_good(lab: Lab, node: Node, kind: str, client: str) -> None:
    """C17: a token service on another host that has nothing for strangers; a password at the registry itself.

    Clients that ping first would be turned away there, and so are not.
    """
    registry = lab.gitlab() if kind == "gitlab" else lab.intra()
    reference = f"{registry.name}/{'group' if kind == 'gitlab' else 'team'}/private:1"
    config = login(registry=registry.name) + (INTRA if kind == "basic" else "")
    node.write("/etc/tidegate/agent.toml", config)
    start(node, config)
    node.start_daemon_of(client)
    assert pulled(node.pull(client, reference), lab.images[reference])
    registry.forget()

    assert pulled(node.pull(client, reference), lab.images[reference])

    assert registry.requests_for("bytes") == []


def test_a_client_that_logs_in_gets_what_its_own_login_deserves(node: Node, registry: Registry) -> None:
    """C16, C17: bob's own repository by bob's login; a wrong one of his fails as without the agent."""
    image = registry.publish(BOBS, "bob/private")
    wrong = User(name="bob", password="not-his")
    start(node, login())

    assert pulled(node.pull("skopeo", BOBS_1, login=registry.users["bob"]), image)
    assert not node.pull("skopeo", BOBS_1).ok
    assert not node.pull("skopeo", BOBS_1, login=wrong).ok
    ping = ask(node, f"{ORIGIN}/v2/", "--user", "bob:not-his")
    assert ping.status == 401


def test_not_shared_a_private_image_stays_private(lab: Lab, node: Node, registry: Registry) -> None:
    """C15, C17, I6: what alice's own login reads is cached for her; nobody else gets it, then or later."""
    alice, bob = registry.users["alice"], registry.users["bob"]
    start(node, login("nobody"))
    assert not node.pull("skopeo", PRIVATE_1).ok

    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), lab.images[PRIVATE_1])

    assert not node.pull("podman", PRIVATE_1).ok
    assert not node.pull("podman", PRIVATE_1, login=bob).ok
    assert ask(node, f"{ORIGIN}/v2/alice/private/tags/list").status == 401
    registry.forget()
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), lab.images[PRIVATE_1])
    assert registry.requests_for("bytes") == []
    assert token_requests(registry, "Basic") == 1  # hers


@pytest.mark.parametrize("share", ["node", "nobody"])
def test_public_images_are_asked_for_in_the_logins_name(
    lab: Lab, node: Node, registry: Registry, share: str
) -> None:
    """C17, C19: so that the registry's limits count on it."""
    start(node, login(share))
    registry.forget()

    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])

    assert token_requests(registry, "Basic") == 1
    assert {request.authorization for request in registry.requests_for("bytes")} == {""}


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_login_that_cannot_be_used_ends_no_pull(
    lab: Lab, node: Node, registry: Registry, password: str
) -> None:
    """C17, I1: no password, a wrong one: public images come as without it. The right one works at once."""
    agent = start(node, login(), password=f"{password}\n")
    registry.forget()

    assert pulled(node.pull("skopeo", SMALL_1), lab.images[SMALL_1])
    assert not node.pull("podman", PRIVATE_1).ok
    assert pulled(node.pull("podman", PRIVATE_1, login=registry.users["alice"]), lab.images[PRIVATE_1])

    own = 1  # podman's, in alice's name
    assert token_requests(registry, "Basic") == own + (1 if password else 0)
    (status,) = agent.status()["credentials"]
    assert not status["working"]
    assert PASSWORD_FILE in status["reason"]
    assert PASSWORD_FILE in node.tidegate("status").stdout.replace("\n", "")
    assert PASSWORD_FILE in agent.log
    node.write(PASSWORD_FILE, f"{PASSWORD}\n", mode=0o600)
    until(lambda: node.pull("skopeo", PRIVATE_1).ok, "the right password is tried")
    assert agent.status()["credentials"][0]["working"]


def test_the_token_service_may_fail_while_the_registry_does_not(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C7, C17: what is cached of a shared repository is served, though nobody can be asked in its name."""
    start(node, login())
    node.start_daemon_of("ctr")
    assert pulled(node.pull("ctr", PRIVATE_1), lab.images[PRIVATE_1])
    registry.give_tokens_for(1)
    assert node.agents[-1].stop() == 0
    node.start_agent(login()).wait_steering()
    registry.fault(Fault(on="token", status=503, times=None))

    assert pulled(node.pull("ctr", PRIVATE_1), lab.images[PRIVATE_1])


def test_what_can_only_be_asked_of_the_registry_is_asked_in_the_logins_name(
    lab: Lab, node: Node, registry: Registry
) -> None:
    """C17, C22, C10: tags, a tag that there is not, referrers, a piece of a layer; never an upload."""
    image = lab.images[PRIVATE_1]
    start(node, login())
    repository = f"{ORIGIN}/v2/alice/private"

    assert b'"1"' in ask(node, f"{repository}/tags/list").body
    assert ask(node, f"{repository}/manifests/none").status == 404
    layer = ask(node, f"{repository}/blobs/{image.largest_layer}", "--range", "10-19")
    assert (layer.status, len(layer.body)) == (206, 10)
    assert ask(node, f"{repository}/blobs/{image.largest_layer}", "--head").status == 200
    assert ask(node, f"{ORIGIN}/v2/bob/private/tags/list").status == 401
    for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/2"), ("DELETE", "manifests/1")):
        refused = ask(node, f"{repository}/{path}", "--request", method)
        assert refused.status == 401
        assert refused.header("WWW-Authenticate").startswith("Bearer ")


def test_a_push_takes_a_login_of_the_clients_own(lab: Lab, node: Node, registry: Registry) -> None:
    """C17, C18: clients do log in, as the ping of a registry with tokens for everyone keeps its challenge."""
    start(node, login())
    node.pull("skopeo-oci", PRIVATE_1, storage="pushed")
    push = ["skopeo", "copy", "--quiet", "--preserve-digests", "oci:/srv/storage-pushed/storage:image"]
    target = "docker://docker.io/alice/copied:1"
    registry.forget()

    assert not node.run([*push, target]).ok
    assert {request.status for request in registry.requests if request.method != "GET"} <= {401, 404, 200}
    assert node.run([*push, target, "--dest-creds=bob:bob-secret"]).ok is False
    assert node.run([*push, target, "--dest-creds=alice:alice-secret"]).ok


def test_no_password_and_no_token_is_anywhere(lab: Lab, node: Node, registry: Registry) -> None:
    """C17, O4: no log, metric, status, file, argument or environment of any process, through failures."""
    agent = start(node, login())
    for client in ("skopeo", "ctr"):
        node.start_daemon_of(client)
        assert node.pull(client, PRIVATE_1).ok
    registry.fault(Fault(on="token", status=503, times=4))
    registry.fault(Fault(on="manifest", status=500, times=2))
    registry.fault(Fault(on="bytes", cut_at=100))
    node.pull("skopeo", PRIVATE_1)
    node.pull("skopeo", SMALL_1)
    registry.heal()
    node.write(PASSWORD_FILE, "hunter2-is-wrong\n", mode=0o600)
    node.pull("skopeo", "docker.io/library/single:1")
    registry.goes_dark()
    node.pull("skopeo", PRIVATE_1)
    registry.comes_back()

    told = {
        "status": node.tidegate("status", "--json").stdout + node.tidegate("status").stdout,
        "config": node.tidegate("config", "show").stdout,
        "metrics": node.run(["curl", "-sS", "http://127.0.0.1:9077/metrics"]).stdout,
        "log": agent.log,
    }
    for pid, name in node.processes().items():
        for what in ("cmdline", "environ"):
            told[f"{name} {what}"] = node.run(["cat", f"/proc/{pid}/{what}"]).stdout
    assert agent.pid in node.processes()
    for folder in ("/var/lib/tidegate", "/run/tidegate", "/etc/tidegate", "/tmp"):
        for path in node.path(folder).rglob("*"):
            if path.is_relative_to(node.path(str(CHECKOUT))):
                continue  # of which this file is a part, and which may well be in /tmp
            if path.is_file() and path.name != Path(PASSWORD_FILE).name:
                told[str(path)] = path.read_bytes().decode("latin-1")
    assert agent.status()["cache"]["blobs"] > 0
    secrets = {PASSWORD, "hunter2-is-wrong", *registry.tokens}
    for password in (PASSWORD, "hunter2-is-wrong"):
        secrets.add(base64.b64encode(f"alice:{password}".encode()).decode())
    assert len(registry.tokens) > 3
    assert {(secret, where) for where, text in told.items() for secret in secrets if secret in text} == set()
