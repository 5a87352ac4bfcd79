"""A node that is a virtual machine, and the agent on it as systemd runs it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from lab import Agent, Completed, Host, Node, until
from lab.network import Address, Interface

from .remote import RemoteHost

TIDEGATE = "/usr/local/bin/tidegate"
ANCHOR = "/usr/local/share/ca-certificates/tidegate-*.crt"
UNIT = "tidegate-agent.service"
STEERS_WITHIN_S = 300.0  # emulated, on a machine that others use too


class MachineNode(RemoteHost, Node):
    """A node whose set-up is cloud-init's: trust, configuration and service are there when it answers."""

    def __init__(self, name: str, interfaces: Sequence[Interface], via: Host):
        RemoteHost.__init__(self, name, interfaces, via)
        self.agents = []
        self.containerd = None
        self.dockerd = None

    def furnish(self, *, resolvers: Sequence[Address], anchor: bytes) -> None:
        raise NotImplementedError("cloud-init does that")

    def start_agent(
        self, config: str = "", *, env: Mapping[str, str] = {}, args: Sequence[str] = ()
    ) -> Agent:
        """The service, which is running already or is started; its configuration is cloud-init's."""
        if config or env or args:
            raise NotImplementedError("the service takes its configuration from cloud-init")
        # Not just `start`: that would also start what the unit wants and has ended.
        start = f"systemctl is-active --quiet {UNIT} || systemctl start {UNIT}"
        self.run(["sh", "-c", start], timeout_s=STEERS_WITHIN_S).or_raise()
        agent = ServiceAgent(self)
        self.agents.append(agent)
        return agent

    def install_trust(self) -> Completed:
        """The service's own unit has done that."""
        return self.run(["sh", "-c", f"ls {ANCHOR}"]).or_raise()

    def tidegate(self, *arguments: str, timeout_s: float = 180) -> Completed:
        return self.run([TIDEGATE, *arguments], timeout_s=timeout_s)


class ServiceAgent(Agent):
    """`tidegate-agent.service` on a machine."""

    def __init__(self, node: MachineNode):
        self._node = node
        self._host = node

    @property
    def supervisor_pid(self) -> int:
        shown = self._node.run(["systemctl", "show", "--value", "--property", "MainPID", UNIT]).or_raise()
        return int(shown.stdout)

    @property
    def log(self) -> str:
        return self._node.run(["journalctl", "--no-pager", "--output", "cat", "--unit", UNIT]).stdout

    def status(self) -> dict[str, Any]:  # Any: the documented JSON of `tidegate status`
        status: dict[str, Any] = json.loads(self._node.tidegate("status", "--json").or_raise().stdout)
        return status

    def wait_steering(self, within_s: float = STEERS_WITHIN_S) -> Agent:
        def steers() -> bool:
            answer = self._node.tidegate("status", "--json")
            return answer.ok and bool(json.loads(answer.stdout)["steering"]["active"])

        try:
            until(steers, "the agent steers", within_s=within_s, every_s=1)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log[-4000:]}") from None
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self._node.kill(self.pid, number)

    def stop(self, timeout_s: float = 90) -> int:
        return self._node.run(["systemctl", "stop", UNIT], timeout_s=timeout_s).exit_code
