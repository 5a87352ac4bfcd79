"""A public registry of the lab, as scenarios see it: what it serves, what it was asked, what goes wrong.

Behind it are a real docker-registry, a token service and a blob host on the internet host; see `front.py`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .artifact import Artifact, digest_of_bytes
from .fault import Fault, Redirects
from .host import Host
from .image import LAYOUT_TAG, MANIFEST, Image, Recipe, build
from .network import Address
from .process import Process
from .token_service import Signer

CONTROL = "/run/lab/front.sock"
LOG = "/run/lab/front.jsonl"
TOKENS = "/run/lab/tokens"
IMAGES = "/srv/images"
TABLE = "lab_darkness"
PUSH = Path(__file__).with_name("push.py")

Darkness = Literal["refused", "silent"]
"""`refused`: TCP connections are reset, also those under way. `silent`: packets vanish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A TCP connection that the registry's side accepted."""

    number: int
    at: float
    peer: tuple[str, int]
    local: tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that arrived; `status` and `sent_bytes` once answered. `authorization` is the scheme."""

    number: int
    connection: int
    at: float
    peer: tuple[str, int]
    host: str
    method: str
    path: str
    query: str
    resource: str
    authorization: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    status: int | None = None
    sent_bytes: int | None = None
    faulty: bool = False  # a fault met it

    def header(self, name: str) -> list[str]:
        return [value for given, value in self.headers if given.lower() == name.lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a registry is made of, before it runs. `private`: repository -> the users who may read it.

    `login`: its token service serves everyone, or as GitLab's only who has the right that is asked for;
    or there is none, and the registry itself asks for a password (`basic`).
    """

    name: str
    addresses: Mapping[str, int]  # host name -> its number on the internet segment
    hosts: tuple[str, ...]
    token_host: str
    token_path: str
    service: str
    blob_host: str
    port: int  # of the docker-registry process, on the internet host's loopback
    private: Mapping[str, tuple[str, ...]]
    users: tuple[User, ...]
    login: Literal["tokens for everyone", "tokens for users", "basic"] = "tokens for everyone"

    @property
    def storage(self) -> str:
        return f"/srv/registry/{self.name}"

    def as_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "name": self.name,
            "hosts": self.hosts,
            "token_host": self.token_host,
            "token_path": self.token_path,
            "service": self.service,
            "blob_host": self.blob_host,
            "backend": f"http://127.0.0.1:{self.port}",
            "storage": self.storage,
            "private": self.private,
            "login": self.login,
            "passwords": {user.name: user.password for user in self.users},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """A push under way."""

    repository: str
    image: Image
    process: Process

    def wait(self) -> Image:
        with self.process:
            if self.process.wait(60) != 0:
                raise RuntimeError(f"skopeo could not push {self.repository}: {self.process.log}")
        return self.image


class Registry:
    """A running registry: `lab.registry` is docker.io, `lab.quay` is quay.io."""

    def __init__(
        self, internet: Host, plan: Plan, addresses: Mapping[str, Sequence[Address]], signer: Signer
    ):
        self.name = plan.name
        self.plan = plan
        self.addresses = addresses  # host name -> its addresses
        self.users = {user.name: user for user in plan.users}
        self._internet = internet
        self._signer = signer
        self._published: dict[tuple[str, str], Image] = {}
        self._log_from = 0
        self._dark = False

    def __repr__(self) -> str:
        return f"<Registry {self.name}>"

    # What it serves

    def publish(self, recipe: Recipe, repository: str, tag: str = "1") -> Image:
        """Build the image and push it to the real registry behind the front, where it then stays.

        Asking for the same again returns what is there; another recipe moves the tag.
        """
        published = self._published.get((repository, tag))
        if published is None or published.recipe != recipe:
            published = self.start_publishing(recipe, repository, tag).wait()
            self._published[repository, tag] = published
        return published

    def start_publishing(self, recipe: Recipe, repository: str, tag: str) -> Publishing:
        layout = f"{IMAGES}/{recipe.name}"
        image = build(recipe, self._internet.path(layout))
        process = self._internet.spawn(self._push(layout, repository, tag), log="push")
        return Publishing(repository=repository, image=image, process=process)

    def _push(self, layout: str, repository: str, tag: str) -> list[str]:
        return push_command(self.plan, self._signer, layout, repository, tag)

    def publish_artifact(self, artifact: Artifact, repository: str, tag: str) -> None:
        """Push an OCI artifact to the real registry behind the front, where it then stays."""
        token = push_token(self.plan, self._signer, repository)
        pushed = {
            "registry": f"127.0.0.1:{self.plan.port}",
            "repository": repository,
            "tag": tag,
            "token": token,
            "manifest": artifact.manifest.decode(),
            "media_type": MANIFEST,
            "blobs": {digest_of_bytes(blob): blob.decode("latin-1") for blob in artifact.blobs},
        }
        argv = [sys.executable, "-P", str(PUSH)]
        self._internet.run(argv, stdin=json.dumps(pushed).encode()).or_raise()

    # What it was asked

    def forget(self) -> None:
        """Start the log anew: `connections` and `requests` tell only of what comes after."""
        self._log_from = self._internet.path(LOG).stat().st_size

    @property
    def connections(self) -> list[Connection]:
        """Every TCP connection accepted on an address of this registry, its token service or blob host."""
        mine = {str(address) for addresses in self.addresses.values() for address in addresses}
        return [
            Connection(
                number=event["connection"],
                at=event["at"],
                peer=(event["peer"][0], event["peer"][1]),
                local=(event["local"][0], event["local"][1]),
            )
            for event in self._events()
            if event["event"] == "connection" and event["local"][0] in mine
        ]

    @property
    def requests(self) -> list[Request]:
        """Every request for a name of this registry, in order of arrival."""
        events = self._events()
        answers = {event["request"]: event for event in events if event["event"] == "response"}
        return [
            Request(
                number=event["request"],
                connection=event["connection"],
                at=event["at"],
                peer=(event["peer"][0], event["peer"][1]),
                host=event["host"],
                method=event["method"],
                path=event["path"],
                query=event["query"],
                resource=event["resource"],
                authorization=event["authorization"],
                headers=tuple((name, value) for name, value in event["headers"]),
                status=answers.get(event["request"], {}).get("status"),
                sent_bytes=answers.get(event["request"], {}).get("sent_bytes"),
                faulty=bool(answers.get(event["request"], {}).get("fault")),
            )
            for event in events
            if event["event"] == "request" and event["registry"] == self.name
        ]

    def requests_for(self, *resources: str) -> list[Request]:
        """The requests for these kinds of resource (`fault.Resource`)."""
        return [request for request in self.requests if request.resource in resources]

    @property
    def tokens(self) -> set[str]:
        """Every token that any token service of the lab ever gave: for looking where none may be."""
        return set(self._internet.path(TOKENS).read_text().split())

    def _events(self) -> list[dict[str, Any]]:  # Any: JSON objects
        with self._internet.path(LOG).open("rb") as log:
            log.seek(self._log_from)
            # A line without its end is still being written.
            return [json.loads(line) for line in log if line.endswith(b"\n")]

    # What is wrong with it

    def fault(self, fault: Fault) -> None:
        """From now on this goes wrong; of several faults the first that meets a request is applied."""
        self._tell(fault=fault.as_json())

    def heal(self) -> None:
        """No more faults (a request that stalls keeps stalling)."""
        self._tell(heal=True)

    def redirect_blobs(self, redirects: Redirects) -> None:
        self._tell(redirects=redirects.as_json())

    def serve_blobs_itself(self) -> None:
        """No redirects: blobs come from the registry's own host."""
        self._tell(redirects=None)

    def let_read(self, repository: str, *users: str) -> None:
        """From now on the repository is private, and tokens for it are for these users alone."""
        self._tell(readers={repository: users})

    def give_tokens_for(self, lifetime_s: int) -> None:
        self._tell(token_lifetime_s=lifetime_s)

    def goes_dark(self, how: Darkness = "refused", *, only: Sequence[str] = ()) -> None:
        """Cut the registry off, with its token service and blob host, or only these of its host names."""
        hosts = only or tuple(self.addresses)
        addresses = [address for host in hosts for address in self.addresses[host]]
        verdict = "reject with tcp reset" if how == "refused" else "drop"
        rules = [
            f"add rule inet {self._chain} meta l4proto tcp {family} daddr {{ {', '.join(chosen)} }} {verdict}"
            for family, version in (("ip", 4), ("ip6", 6))
            if (chosen := sorted({str(address) for address in addresses if address.version == version}))
        ]
        chain = f"add chain inet {self._chain} {{ type filter hook input priority 0; }}"
        self._dark = True
        self._nft([f"add table inet {self._table}", f"flush table inet {self._table}", chain, *rules])

    def comes_back(self) -> None:
        if self._dark:
            self._nft([f"delete table inet {self._table}"])
            self._dark = False

    def reset(self) -> None:
        """As new: reachable, healthy, redirecting, nothing logged. Images stay."""
        self.comes_back()
        self._tell(reset=True)
        self.forget()

    @property
    def _table(self) -> str:
        return f"{TABLE}_{self.name.replace('.', '_')}"

    @property
    def _chain(self) -> str:
        return f"{self._table} input"

    def _nft(self, commands: Sequence[str]) -> None:
        self._internet.run(["nft", "-f", "-"], stdin="\n".join(commands).encode()).or_raise()

    def _tell(self, **command: object) -> None:
        line = json.dumps({"registry": self.name, **command}).encode() + b"\n"
        if not self._internet.exchange(CONTROL, line).endswith(b"\n"):
            raise ConnectionError("the front did not take the command; see its log")


def push_token(plan: Plan, signer: Signer, repository: str) -> str:
    """What the docker-registry process behind the front accepts for a push."""
    access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
    return signer.token(service=plan.service, user="lab", access=access, now=int(time.time()), lifetime_s=600)


def push_command(plan: Plan, signer: Signer, layout: str, repository: str, tag: str) -> list[str]:
    """skopeo's command line that pushes an image layout to the process behind the front, on the same host."""
    token = push_token(plan, signer, repository)
    target = f"docker://127.0.0.1:{plan.port}/{repository}:{tag}"
    options = ["--all", "--preserve-digests", "--dest-tls-verify=false", f"--dest-registry-token={token}"]
    return ["skopeo", "copy", "--quiet", *options, f"oci:{layout}:{LAYOUT_TAG}", target]


def front_config(pki: str, plans: Sequence[Plan]) -> dict[str, Any]:  # Any: a JSON object
    """The configuration of `front.py`, whose certificates and keys lie in `pki`."""
    return {
        "certificate": f"{pki}/server.crt",
        "key": f"{pki}/server.key",
        "token_certificate": f"{pki}/token.crt",
        "token_key": f"{pki}/token.key",
        "log": LOG,
        "tokens": TOKENS,
        "control": CONTROL,
        "registries": [plan.as_json() for plan in plans],
    }


def backend_config(plan: Plan, token_certificate: str) -> str:
    """The configuration of the real docker-registry behind this registry."""
    config: dict[str, Any] = {  # Any: a JSON object
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": plan.storage},
            "delete": {"enabled": True},
            "redirect": {"disable": True},
        },
        "http": {"addr": f"127.0.0.1:{plan.port}"},
    }
    if plan.login != "basic":  # passwords are the front's business
        config["auth"] = {
            "token": {
                "realm": f"https://{plan.token_host}{plan.token_path}",
                "service": plan.service,
                "issuer": "lab",
                "rootcertbundle": token_certificate,
            }
        }
    return json.dumps(config)  # which is YAML
