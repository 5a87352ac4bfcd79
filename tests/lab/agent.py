"""The agent under test on a node: started, watched and killed as systemd or a person would do it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .host import Host
from .process import Process
from .waiting import until

TIDEGATE = str(Path(sys.executable).with_name("tidegate"))
CONFIG = "/etc/tidegate/agent.toml"


class Agent:
    """A started `tidegate agent`. The started process is the supervisor; the agent is its child."""

    def __init__(
        self,
        host: Host,
        config: str = "",
        *,
        env: Mapping[str, str] = {},
        args: Sequence[str] = (),
        under: Sequence[str] = (),
    ):
        """`under` is a program that starts it, such as setpriv with its arguments."""
        self._host = host
        host.write(CONFIG, config)
        if "backend" not in config:
            # By name, so that a scenario means one mechanism: what "auto" picks depends on the machine.
            env = {"TIDEGATE_STEERING__BACKEND": "nft", **env}
        self.supervisor: Process = host.spawn(
            [*under, TIDEGATE, "agent", "--config", CONFIG, *args], env=env, log="tidegate-agent"
        )

    @property
    def supervisor_pid(self) -> int:
        return self.supervisor.pid

    @property
    def pid(self) -> int:
        """The agent process that steers now, as `status` tells it."""
        return int(self.status()["pid"])

    @property
    def log(self) -> str:
        return self.supervisor.log

    def status(self) -> dict[str, Any]:  # Any: the documented JSON of `tidegate status`
        """`tidegate status --json`; CommandFailed when no agent answers."""
        answer = self._host.run([TIDEGATE, "status", "--json", "--config", CONFIG], timeout_s=10).or_raise()
        status: dict[str, Any] = json.loads(answer.stdout)
        return status

    def metrics(self) -> dict[str, float]:
        """What a scrape of the default admin address gives: `name{label="value"}` -> value."""
        scrape = self._host.run(
            ["curl", "-sS", "--max-time", "5", "http://127.0.0.1:9077/metrics"]
        ).or_raise()
        samples = (line.rpartition(" ") for line in scrape.stdout.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def wait_steering(self, within_s: float = 15) -> Agent:
        """Wait until the rules are in and alive; an agent that ended instead raises with its log."""

        def steers() -> bool:
            if not self.supervisor.running:
                raise RuntimeError(f"the agent ended with {self.supervisor.wait()}:\n{self.log[-4000:]}")
            answer = self._host.run([TIDEGATE, "status", "--json", "--config", CONFIG], timeout_s=10)
            return answer.ok and bool(json.loads(answer.stdout)["steering"]["active"])

        try:
            until(steers, "the agent steers", within_s=within_s, every_s=0.05)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log[-4000:]}") from None
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the agent process itself, not to its supervisor."""
        with self._host.process(self.pid) as process:
            process.kill(number)

    def stop(self, timeout_s: float = 40) -> int:
        """SIGTERM to the supervisor, as systemd does, and its exit code."""
        return self.supervisor.stop(timeout_s)
