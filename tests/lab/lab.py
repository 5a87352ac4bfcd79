"""The whole lab: a switch, the internet, a resolver and nodes. See README.md for how scenarios use it.

with Lab() as lab:
    assert lab.node.pull("skopeo", "docker.io/library/small:1").ok
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from .central import Central
from .host import PYTHON_ENV, Host
from .image import LARGE, SINGLE, SMALL, Image, Recipe
from .network import Network, on_the_internet, on_the_lan
from .node import Node
from .own_registry import OwnRegistry
from .pki import Authority, token_signer
from .registry import Plan, Registry, User, backend_config, front_config
from .resolver import Resolver
from .tier import Tier
from .token_service import Signer
from .waiting import until

USERS = (User(name="alice", password="alice-secret"), User(name="bob", password="bob-secret"))

DOCKER_IO = Plan(
    name="docker.io",
    addresses={
        "registry-1.docker.io": 11,
        "index.docker.io": 11,
        "auth.docker.io": 12,
        "production.cloudflare.docker.com": 13,
    },
    hosts=("registry-1.docker.io", "index.docker.io"),
    token_host="auth.docker.io",
    token_path="/token",
    service="registry.docker.io",
    blob_host="production.cloudflare.docker.com",
    port=5000,
    private={"alice/private": ("alice",), "bob/private": ("bob",)},
    users=USERS,
)
QUAY_IO = Plan(
    name="quay.io",
    addresses={"quay.io": 21, "cdn01.quay.io": 22},
    hosts=("quay.io",),
    token_host="quay.io",
    token_path="/v2/auth",
    service="quay.io",
    blob_host="cdn01.quay.io",
    port=5001,
    private={},
    users=USERS,
)
# Two more kinds of logins. Their processes start when a scenario first wants one.
GITLAB = Plan(
    name="registry.gitlab.com",
    addresses={"registry.gitlab.com": 31, "gitlab.com": 32, "cdn.registry.gitlab-static.net": 33},
    hosts=("registry.gitlab.com",),
    token_host="gitlab.com",
    token_path="/jwt/auth",
    service="container_registry",
    blob_host="cdn.registry.gitlab-static.net",
    port=5002,
    private={"group/private": ("alice",)},
    users=USERS,
    login="tokens for users",
)
INTRA = Plan(
    name="registry.intra.test",
    addresses={"registry.intra.test": 41, "blobs.intra.test": 42},
    hosts=("registry.intra.test",),
    token_host="",
    token_path="",
    service="",
    blob_host="blobs.intra.test",
    port=5003,
    private={},
    users=USERS,
    login="basic",
)
NEIGHBOUR = 99  # www.example.org: on the internet, nobody's registry

PRIVATE = Recipe(name="private", layers=(120 << 10, 500))
TOOL = Recipe(name="tool", layers=(90 << 10,))
FIRST_NODE = 2
RESOLVER = 53
PKI = "/etc/lab"

N = TypeVar("N", bound=Node)


class Lab:
    """A running lab. Start it once a session; `reset()` gives new nodes and healthy surroundings."""

    def __init__(self, *, nodes: int = 1):
        self._stack = ExitStack()
        self._node_count = nodes
        self.nodes: list[Node] = []

    def __enter__(self) -> Lab:
        with ExitStack() as opening:
            opening.callback(self.close)
            self._open()
            opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        self.authority = Authority("Lab Internet CA")
        self.switch = self._stack.enter_context(Host("switch"))
        self.internet = self._stack.enter_context(Host("internet"))
        resolver_host = self._stack.enter_context(Host("resolver"))
        self.hosts = [self.switch, self.internet, resolver_host]
        self.network = Network(self.switch)
        plans = (DOCKER_IO, QUAY_IO, GITLAB, INTRA)
        numbers = {host: number for plan in plans for host, number in plan.addresses.items()}
        wan = {number: on_the_internet(number) for number in {*numbers.values(), NEIGHBOUR}}
        self.network.plug_into_wan(self.internet, [interface for pair in wan.values() for interface in pair])
        self.network.plug_into_lan(resolver_host, on_the_lan(RESOLVER))
        names = {host: [interface.ip for interface in wan[number]] for host, number in numbers.items()}
        self._start_internet(plans)
        elsewhere = [interface.ip for interface in wan[NEIGHBOUR]]
        self.resolver = Resolver(resolver_host, self.network, names, elsewhere)
        self.registry, self.quay, self._gitlab, self._intra = (
            Registry(self.internet, plan, {host: names[host] for host in plan.addresses}, self._signer)
            for plan in plans
        )
        self._publish()
        self._renew_nodes()
        for registry in self._registries:
            registry.forget()

    def close(self) -> None:
        """End every host. Nothing of the lab is left."""
        for host in (*self.nodes, *reversed(getattr(self, "hosts", []))):
            host.close()
        self._stack.close()

    def _start_internet(self, plans: tuple[Plan, ...]) -> None:
        signer = token_signer()
        self._signer = Signer(signer)
        server = self.authority.server([host for plan in plans for host in plan.addresses])
        for name, pem in (
            ("server.crt", server.certificate),
            ("server.key", server.key),
            ("token.crt", signer.certificate),
            ("token.key", signer.key),
        ):
            self.internet.write(f"{PKI}/{name}", pem, mode=0o600)
        self.internet.write("/etc/lab/front.json", json.dumps(front_config(PKI, plans)))
        self.internet.spawn(
            [sys.executable, "-m", "lab.front", "/etc/lab/front.json"], env=PYTHON_ENV, log="front"
        )
        for plan in (DOCKER_IO, QUAY_IO):
            self._start_backend(plan)

    def _start_backend(self, plan: Plan) -> None:
        self.internet.write(f"{PKI}/{plan.name}.yml", backend_config(plan, f"{PKI}/token.crt"))
        self.internet.spawn(["docker-registry", "serve", f"{PKI}/{plan.name}.yml"], log=plan.name)

    @property
    def _registries(self) -> tuple[Registry, ...]:
        return self.registry, self.quay, self._gitlab, self._intra

    def _publish(self) -> None:
        until(lambda: {5000, 5001} <= self.internet.listening(), "both docker-registries listen")
        self.images: dict[str, Image] = {}
        started = [
            (registry, registry.start_publishing(recipe, repository, "1"))
            for registry, recipe, repository in (
                (self.registry, SMALL, "library/small"),
                (self.registry, SINGLE, "library/single"),
                (self.registry, PRIVATE, "alice/private"),
                (self.quay, TOOL, "team/tool"),
            )
        ]
        for registry, publishing in started:
            image = publishing.wait()
            self.images[f"{registry.name}/{publishing.repository}:1"] = image
        until(lambda: 443 in self.internet.listening(), "the front listens")

    def large(self) -> Image:
        """Publish docker.io/library/large:1 (a layer of 100 MB) if it is not there yet."""
        image = self.registry.publish(LARGE, "library/large")
        self.registry.forget()
        return image

    def gitlab(self) -> Registry:
        """registry.gitlab.com, whose tokens come from gitlab.com, for its users alone; group/private:1."""
        return self._started(self._gitlab, "group/private")

    def intra(self) -> Registry:
        """registry.intra.test, which asks for a password itself; team/private:1."""
        return self._started(self._intra, "team/private")

    def _started(self, registry: Registry, repository: str) -> Registry:
        if f"{registry.name}/{repository}:1" not in self.images:
            self._start_backend(registry.plan)
            port = registry.plan.port
            until(
                lambda: port in self.internet.listening(), f"the docker-registry of {registry.name} listens"
            )
            self.images[f"{registry.name}/{repository}:1"] = registry.publish(PRIVATE, repository)
            registry.forget()
        return registry

    # Nodes

    @property
    def node(self) -> Node:
        return self.nodes[0]

    def _renew_nodes(self) -> None:
        for node in self.nodes:
            node.close()
        self.nodes = []
        for number in range(self._node_count):
            self.add_node("node" if number == 0 else f"node{number + 1}")

    def add_node(self, name: str) -> Node:
        """One more node, until the next `reset()`."""
        return self._add(Node(name))

    def add_tier(self, name: str = "tier") -> Tier:
        """A host for a foreign tier, not started yet, until the next `reset()`."""
        return self._add(Tier(name))

    def _add(self, node: N) -> N:
        self.nodes.append(node)
        self.network.plug_into_lan(node, on_the_lan(FIRST_NODE + len(self.nodes) - 1))
        node.furnish(resolvers=[self.resolver.address], anchor=self.authority.anchor)
        return node

    def add_central(self, name: str = "central") -> Central:
        """A host that runs a central tier once it is started, until the next `reset()`."""
        central = self._add(Central(name))
        self.resolver.answer(
            records={**self.resolver.records, central.domain_name: [central.interfaces[0].ip]}
        )
        return central

    def add_own_registry(self, *domain_names: str, name: str = "own") -> OwnRegistry:
        """A host for registries of one's own, none started yet, until the next `reset()`."""
        own = self._add(OwnRegistry(name, *(domain_names or ("registry.local.test",))))
        records = {each: [own.interfaces[0].ip] for each in own.domain_names}
        self.resolver.answer(records={**self.resolver.records, **records})
        return own

    def reset(self) -> None:
        """New nodes; registries and resolver healthy, reachable and with empty logs."""
        self._renew_nodes()
        self.resolver.reset()
        for registry in self._registries:
            registry.reset()

    def logs(self) -> dict[str, str]:
        """Every log of every host: "host/name" -> text."""
        found: dict[str, str] = {}
        for host in (*self.hosts, *self.nodes):
            found |= {f"{host.name}/{name}": text for name, text in host.logs().items()}
        exchanges = sorted(
            (request.at, request) for registry in self._registries for request in registry.requests
        )
        found["internet/requests"] = "\n".join(
            f"{at:.3f} {request.peer[0]} {request.method} {request.host}{request.path}"
            f" {request.authorization or '-'} -> {request.status} {request.sent_bytes} bytes"
            for at, request in exchanges
        )
        return found
