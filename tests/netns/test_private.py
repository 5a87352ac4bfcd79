"""Private images through the agent: alice's come from the cache for her, and nobody else can tell.

Real clients and a real registry; what the registry was asked is told by its own log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab import Agent, Central, Fault, HttpsAnswer, Image, Lab, Node, Pull, Recipe, Registry, User, ask, until
from lab.image import MANIFEST

PRIVATE_1 = "docker.io/alice/private:1"
BOBS_1 = "docker.io/bob/private:1"
SMALL_1 = "docker.io/library/small:1"
TEAMS_1 = "docker.io/team/secret:1"
ORIGIN = "https://registry-1.docker.io"
BOBS = Recipe(name="bobs", layers=(70_000,), with_busybox=False)
TEAMS = Recipe(name="teams", layers=(2_000_000,), with_busybox=False)
UNKNOWN = f"sha256:{'5e' * 32}"


@pytest.fixture
def agent(node: Node, registry: Registry) -> Iterator[Agent]:
    node.install_trust()
    agent = node.start_agent().wait_steering()
    registry.forget()
    yield agent
    assert node.agents[-1].supervisor.running, node.agents[-1].log[-4000:]


@pytest.fixture
def alice(registry: Registry) -> User:
    return registry.users["alice"]


@pytest.fixture
def bob(registry: Registry) -> User:
    return registry.users["bob"]


def pulled(pull: Pull, image: Image) -> bool:
    assert pull.ok, pull.stderr
    assert pull.brought(image)
    return True


def bearer(node: Node, user: User | None, repository: str) -> tuple[str, str]:
    """curl's options that show a token of the user's for the repository."""
    login = ("--user", f"{user.name}:{user.password}") if user is not None else ()
    scope = f"service=registry.docker.io&scope=repository:{repository}:pull"
    token = json.loads(ask(node, f"https://auth.docker.io/token?{scope}", *login).body)["token"]
    return "--header", f"Authorization: Bearer {token}"


@pytest.mark.parametrize("client", ["skopeo", "podman", "ctr", "dockerd"])
def test_alices_second_pull_comes_from_the_cache_and_nobody_elses_does(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, bob: User, client: str
) -> None:
    """C15, C16, I6: her right is proven by a HEAD; not a byte comes again; bob and nobody are refused."""
    image = lab.images[PRIVATE_1]
    node.start_daemon_of(client)
    assert not node.pull(client, PRIVATE_1).ok
    registry.forget()
    assert pulled(node.pull(client, PRIVATE_1, login=alice), image)
    fetched = [request.path for request in registry.requests_for("bytes")]
    assert len(fetched) == len(set(fetched)) == len(image.contents.layers) + 1
    registry.forget()

    assert pulled(node.pull(client, PRIVATE_1, login=alice), image)

    assert registry.requests_for("blob", "bytes") == []
    proofs = [request for request in registry.requests_for("manifest") if request.authorization == "Bearer"]
    assert {request.method for request in proofs} == {"HEAD"}
    if client in ("skopeo", "podman"):  # one token a pull: containerd has two, and asks HEAD itself
        assert len(proofs) == 1
    assert agent.status()["cache"]["hits"] > 0
    assert not node.pull(client, PRIVATE_1, login=bob).ok
    assert not node.pull(client, PRIVATE_1).ok


def test_what_one_client_pulled_another_one_of_hers_finds(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User
) -> None:
    """C15, C2: podman's is skopeo's; and bob's own image, with a layer of hers, is his as ever."""
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), lab.images[PRIVATE_1])
    registry.forget()

    assert pulled(node.pull("podman", PRIVATE_1, login=alice), lab.images[PRIVATE_1])

    assert registry.requests_for("bytes") == []


WAYS: dict[str, tuple[str, ...]] = {
    "get": (),
    "head": ("--head",),
    "closed range": ("--range", "10-19"),
    "suffix range": ("--range", "-10"),
    "range from": ("--range", "10-"),
}


def told(
    node: Node, registry: Registry, path: str, named: str, *options: str
) -> tuple[HttpsAnswer, list[tuple[str, ...]]]:
    """The answer, and what the registry was asked for it, each without the digest that was named."""
    registry.forget()
    answer = ask(node, ORIGIN + path, *options)
    headers = {
        name: value for name, value in answer.headers.items() if name not in ("date", "content-length")
    }
    body = (
        b"" if "--head" in options else answer.body.replace(named.encode(), b"NAMED")
    )  # curl's own, with a date
    asked = [
        (request.method, request.path.replace(named, "NAMED"), request.authorization)
        for request in registry.requests
    ]
    return HttpsAnswer(status=answer.status, headers=headers, body=body), asked


@pytest.mark.parametrize("reader", ["bob at his own", "bob at hers", "nobody at hers", "anybody in public"])
def test_bob_cannot_tell_what_alice_pulled_from_what_nobody_has(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, bob: User, reader: str
) -> None:
    """I6, C15: layer and manifest, GET, HEAD, ranges: the registry's word, by the same requests."""
    image = lab.images[PRIVATE_1]
    registry.publish(BOBS, "bob/private")
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), image)
    assert node.pull("skopeo", BOBS_1, login=bob).ok
    assert node.pull("skopeo", SMALL_1).ok
    hers = set(image.sizes) - set(lab.images[SMALL_1].sizes)
    layer = next(digest for digest in image.contents.layers if digest in hers)
    repository, user = {
        "bob at his own": ("bob/private", bob),
        "bob at hers": ("alice/private", bob),
        "nobody at hers": ("alice/private", None),
        "anybody in public": ("library/small", None),
    }[reader]
    shown = bearer(node, user, repository)
    ask(
        node, f"{ORIGIN}/v2/{repository}/manifests/1", *shown, "--header", f"Accept: {MANIFEST}"
    )  # proves, if it can

    asked = [("blobs", layer, way) for way in WAYS.values()]
    asked += [("manifests", image.contents.manifest, way) for way in WAYS.values()]
    for kind, digest, options in (*asked, ("blobs", image.contents.manifest, ())):
        path = f"/v2/{repository}/{kind}/"
        unknown = told(node, registry, path + UNKNOWN, UNKNOWN, *shown, *options)
        known = told(node, registry, path + digest, digest, *shown, *options)

        assert known == unknown
        assert known[0].status in (401, 404)
        assert known[1]
    bare = [ask(node, f"{ORIGIN}/v2/{repository}/blobs/{digest}") for digest in (layer, UNKNOWN)]
    assert [answer.status for answer in bare] == [401, 401]


def test_a_pushed_manifest_does_not_open_what_it_names(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, bob: User
) -> None:
    """I6: the real registry takes a subject that is not there, and another case of a key, from bob."""
    image = lab.images[PRIVATE_1]
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), image)
    bobs = registry.publish(BOBS, "bob/private")
    assert node.pull("skopeo", BOBS_1, login=bob).ok
    shown = bearer(node, bob, "bob/private")
    accept = ("--header", f"Accept: {MANIFEST}")
    own = ask(node, f"{ORIGIN}/v2/bob/private/manifests/{bobs.contents.manifest}", *shown, *accept)
    document = json.loads(own.body)
    layer = image.contents.layers[-1]
    tricks = {
        "subject": {"subject": {**document["config"], "digest": image.contents.manifest}},
        "case": {"layers": [{**document["layers"][0], "digest": layer}], "Layers": document["layers"]},
    }
    pushing = ("--header", bearer_for_push(node, bob, "bob/private"))
    for name, trick in tricks.items():
        body = json.dumps({**document, **trick})
        pushed = ask(
            node,
            f"{ORIGIN}/v2/bob/private/manifests/{name}",
            *("--request", "PUT", *pushing, "--data-binary", body),
            *("--header", f"Content-Type: {MANIFEST}"),
        )
        assert pushed.status == 201, (name, pushed.body)
        assert ask(node, f"{ORIGIN}/v2/bob/private/manifests/{name}", *shown, *accept).status == 200

    for path in (f"blobs/{layer}", f"manifests/{image.contents.manifest}"):
        assert ask(node, f"{ORIGIN}/v2/bob/private/{path}", *shown).status == 404


def bearer_for_push(node: Node, user: User, repository: str) -> str:
    scope = f"service=registry.docker.io&scope=repository:{repository}:pull,push"
    answer = ask(node, f"https://auth.docker.io/token?{scope}", "--user", f"{user.name}:{user.password}")
    return f"Authorization: Bearer {json.loads(answer.body)['token']}"


def test_a_right_that_was_withdrawn_is_gone_with_the_next_token(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, bob: User
) -> None:
    """C15, C16, I6: both may read; then bob may not, while alice is served from what he brought."""
    image = registry.publish(TEAMS, "team/secret")
    registry.let_read("team/secret", "alice", "bob")
    assert not node.pull("skopeo", TEAMS_1).ok
    assert pulled(node.pull("skopeo", TEAMS_1, login=bob), image)
    registry.let_read("team/secret", "alice")
    registry.forget()

    assert not node.pull("skopeo", TEAMS_1, login=bob).ok
    assert pulled(node.pull("podman", TEAMS_1, login=alice), image)

    assert registry.requests_for("bytes") == []


def test_a_fetch_under_way_is_joined_by_those_alone_who_have_a_right(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User, bob: User
) -> None:
    """C11, C15, I6: alice and bob share one transfer by two credentials; nobody gets a byte of it."""
    image = registry.publish(TEAMS, "team/secret")
    registry.let_read("team/secret", "alice", "bob")
    registry.fault(Fault(on="bytes", bytes_per_s=700_000, times=None, matching=image.largest_layer[7:]))
    registry.forget()
    pulls = [node.start_pull("skopeo", TEAMS_1, login=user) for user in (alice, bob)]
    until(
        lambda: any(image.largest_layer[7:] in each.path for each in registry.requests_for("bytes")),
        "it runs",
    )

    assert ask(node, f"{ORIGIN}/v2/team/secret/blobs/{image.largest_layer}").status == 401
    public = bearer(node, None, "library/small")
    assert ask(node, f"{ORIGIN}/v2/library/small/blobs/{image.largest_layer}", *public).status == 404

    assert all(pulled(pull.wait(), image) for pull in pulls)
    asked = [request.path for request in registry.requests_for("bytes")]
    assert len(asked) == len(set(asked))


def test_a_token_that_ends_is_asked_for_by_the_client(
    lab: Lab, node: Node, registry: Registry, agent: Agent, alice: User
) -> None:
    """C16: the challenge reaches it as it is, also for what is cached; no token is on disk or in a log."""
    image = lab.images[PRIVATE_1]
    assert pulled(node.pull("skopeo", PRIVATE_1, login=alice), image)
    layer = f"{ORIGIN}/v2/alice/private/blobs/{image.largest_layer}"
    refused = ask(node, layer, "--header", "Authorization: Bearer ended.long.ago")
    through = ask(node, layer)

    for answer in (refused, through):
        assert answer.status == 401
        assert answer.header("WWW-Authenticate").startswith('Bearer realm="https://auth.docker.io/token"')
    renewed = ask(node, layer, *bearer(node, alice, "alice/private"))
    assert (renewed.status, renewed.cache, len(renewed.body)) == (
        200,
        "hit",
        image.sizes[image.largest_layer],
    )
    kept = [path.read_bytes() for path in node.path("/var/lib/tidegate").rglob("*") if path.is_file()]
    text = b"".join(kept).decode("latin-1") + agent.log
    assert not any(token in text for token in registry.tokens)


@pytest.mark.parametrize("kind", ["central", "connect"])
def test_a_fleet_shares_private_bytes_by_right_alone(
    lab: Lab, node: Node, registry: Registry, alice: User, bob: User, kind: str
) -> None:
    """I6, C15, T2, T3: a central tier of ours has them for alice's other node, and for nobody else; what is
    reached by CONNECT is passed by, as it may keep what it sees and ignore who asks.
    """
    central = lab.add_central().start()
    nodes = [node, lab.add_node("other")]
    for each in nodes:
        steered(each, central, kind)
    image = lab.images[PRIVATE_1]
    assert pulled(nodes[0].pull("skopeo", PRIVATE_1, login=alice), image)
    registry.forget()

    assert pulled(nodes[1].pull("podman", PRIVATE_1, login=alice), image)

    fetched = registry.requests_for("bytes")
    assert fetched == [] if kind == "central" else len(fetched) == len(image.contents.layers) + 1
    assert any(central.path("/srv/tidegate-central/blobs").rglob("sha256/*/*")) is (kind == "central")
    for each in nodes:
        assert not each.pull("skopeo", PRIVATE_1, login=bob).ok
        assert not each.pull("skopeo", PRIVATE_1).ok
    shown = bearer(node, bob, "alice/private")
    central_ca = ("--cacert", "/etc/tidegate/central.pem") if kind == "central" else ()
    if central_ca:
        url = f"{central.mirror}/v2/alice/private/blobs/{image.largest_layer}?ns=docker.io"
        assert [ask(node, url, *central_ca, *each).status for each in (shown, ())] == [401, 401]
    registry.goes_dark()
    for each in nodes:
        assert not each.pull("skopeo", PRIVATE_1, login=alice).ok


def steered(node: Node, central: Central, kind: str) -> Agent:
    ca = ""
    if kind == "central":
        node.write("/etc/tidegate/central.pem", central.ca)
        ca = 'ca = "/etc/tidegate/central.pem"\n'
    url = central.mirror if kind == "central" else central.proxy
    node.install_trust()
    return node.start_agent(f'[[upstream]]\nkind = "{kind}"\nurl = "{url}"\n{ca}').wait_steering()
