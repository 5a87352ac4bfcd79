"""A node: a host with a trust store of its own, on which clients pull and the agent runs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from .agent import TIDEGATE, Agent
from .client import CLIENTS, Pull, Pulling, start_pull
from .containerd import Containerd
from .dockerd import Dockerd
from .host import Host
from .network import Address
from .process import Completed
from .registry import User

LOCAL_ANCHORS = "/usr/local/share/ca-certificates"
INTERNET_ANCHOR = f"{LOCAL_ANCHORS}/lab-internet-ca.crt"


class Node(Host):
    """A plain Debian node: it trusts the lab's internet and nothing else, and asks the lab's resolver."""

    def __init__(self, name: str):
        super().__init__(name)
        self.agents: list[Agent] = []
        self.containerd: Containerd | None = None
        self.dockerd: Dockerd | None = None

    def furnish(self, *, resolvers: Sequence[Address], anchor: bytes) -> None:
        """Give the node its own identity, resolvers, trust store and container configuration."""
        self.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/hosts", f"127.0.0.1 localhost {self.name}\n::1 localhost\n")
        self.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
        self.use_resolvers(resolvers)
        self.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}\n')
        self.write("/etc/containers/registries.conf", "")
        for folder in (LOCAL_ANCHORS, "/etc/ca-certificates/update.d", "/etc/ssl/certs"):
            for leftover in self.path(folder).glob("*"):
                if not leftover.is_dir() or leftover.is_symlink():
                    leftover.unlink()
        self.write("/etc/ca-certificates.conf", "")  # none of Mozilla's: they would only cost time
        self.write(INTERNET_ANCHOR, anchor)
        self.run(["update-ca-certificates"]).or_raise()

    def use_resolvers(self, resolvers: Sequence[Address]) -> None:
        self.write("/etc/resolv.conf", "".join(f"nameserver {address}\n" for address in resolvers))

    # Clients

    def pull(
        self,
        client: str,
        reference: str,
        *,
        login: User | None = None,
        storage: str = "",
        env: Mapping[str, str] = {},
        timeout_s: float = 90,
    ) -> Pull:
        """Pull with one of `CLIENTS` and wait for the end, good or bad.

        `login` is what the user logged in as, `storage` names a storage that is kept (fresh otherwise).
        """
        return self.start_pull(client, reference, login=login, storage=storage, env=env).wait(timeout_s)

    def start_pull(
        self,
        client: str,
        reference: str,
        *,
        login: User | None = None,
        storage: str = "",
        env: Mapping[str, str] = {},
    ) -> Pulling:
        """Start a pull and let it run: for kills in the middle, and several at once."""
        return start_pull(self, CLIENTS[client], reference, login=login, storage=storage, env=env)

    def start_daemon_of(self, client: str) -> None:
        """Start the daemon that this client needs, if any and none runs: for tests of all clients."""
        match CLIENTS[client].daemon:
            case "containerd" if self.containerd is None:
                self.start_containerd()
            case "dockerd" if self.dockerd is None:
                self.start_dockerd()

    def start_containerd(self, config: str = "") -> Containerd:
        """Start containerd, which the clients `ctr` and `cri` need, and wait until it answers.

        Its CRI plugin trusts what the node trusts when it pulls for the first time.
        """
        self.containerd = Containerd(self, config)
        return self.containerd

    def start_dockerd(self, env: Mapping[str, str] = {}) -> Dockerd:
        """Start dockerd (and containerd, when none runs) and wait until it answers."""
        if self.containerd is None:
            self.start_containerd()
        self.dockerd = Dockerd(self, env)
        return self.dockerd

    def dig(self, *arguments: str) -> Completed:
        """`dig` with the node's resolver; one try of 2 s unless told otherwise."""
        return self.run(["dig", "+tries=1", "+time=2", *arguments])

    # The agent

    def start_agent(
        self,
        config: str = "",
        *,
        env: Mapping[str, str] = {},
        args: Sequence[str] = (),
        under: Sequence[str] = (),
    ) -> Agent:
        """Start `tidegate agent` with this configuration file and return at once."""
        agent = Agent(self, config, env=env, args=args, under=under)
        self.agents.append(agent)
        return agent

    def install_trust(self) -> Completed:
        """Trust the node's own authority, as an operator does it; before or after the agent's start."""
        return self.tidegate("trust", "install").or_raise()

    def tidegate(self, *arguments: str, timeout_s: float = 30) -> Completed:
        """Run the command line: `node.tidegate("trust", "install").or_raise()`."""
        return self.run([TIDEGATE, *arguments], timeout_s=timeout_s)
