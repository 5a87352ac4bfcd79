"""A host on the LAN that runs `tidegate central`, and what its clients need to know of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

from .agent import TIDEGATE
from .node import Node
from .process import Process
from .waiting import until

CONFIG = "/etc/tidegate/central.toml"
STATE = "/srv/tidegate-central"
MIRROR_PORT, CONNECT_PORT, ADMIN_PORT = 5443, 3128, 9078


class Central(Node):
    """It has a name in the lab's DNS: `<name>.example.org`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.domain_name = f"{name}.example.org"
        self.daemon: Process | None = None

    @property
    def proxy(self) -> str:
        """The CONNECT port's URL, as `kind = "connect"` and HTTPS_PROXY have it."""
        return f"http://{self.domain_name}:{CONNECT_PORT}"

    @property
    def mirror(self) -> str:
        """The mirror's URL, as `kind = "central"` and hosts.toml have it."""
        return f"https://{self.domain_name}:{MIRROR_PORT}"

    def start(self, config: str = "", *, mirror: str = "", env: Mapping[str, str] = {}) -> Central:
        """Start `tidegate central` and wait until it is ready; `mirror` goes into its [mirror] table."""
        names = "" if "certificate" in mirror else f'names = ["{self.domain_name}"]\n'
        self.write(CONFIG, f'state_dir = "{STATE}"\n{config}\n[mirror]\n{names}{mirror}\n')
        self.daemon = process = self.spawn(
            [TIDEGATE, "central", "--config", CONFIG], env=env, log="tidegate-central"
        )

        def ready() -> bool:
            if not process.running:
                raise RuntimeError(f"central ended with {process.wait()}:\n{self.log[-4000:]}")
            return self.admin("readyz") == "serving\n"

        until(ready, f"{self.name} serves", within_s=20, every_s=0.05)
        return self

    @property
    def log(self) -> str:
        return "" if self.daemon is None else self.daemon.log

    @property
    def ca(self) -> bytes:
        """Its authority's certificate, as anybody gets it."""
        got = self.run(["curl", "-sS", "--fail", f"http://127.0.0.1:{CONNECT_PORT}/ca.crt"])
        return got.or_raise().stdout.encode()

    def admin(self, page: str) -> str:
        """What it says of itself at /metrics, /healthz or /readyz; empty when it does not answer."""
        return self.run(["curl", "-s", "--max-time", "5", f"http://127.0.0.1:{ADMIN_PORT}/{page}"]).stdout

    def status(self) -> dict[str, Any]:  # Any: the documented JSON of `tidegate status`
        answer = self.run([TIDEGATE, "status", "--json", "--config", CONFIG], timeout_s=10).or_raise()
        status: dict[str, Any] = json.loads(answer.stdout)
        return status

    def metrics(self) -> dict[str, float]:
        samples = (line.rpartition(" ") for line in self.admin("metrics").splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in samples}

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.daemon is not None
        self.daemon.kill(number)

    def stop(self, timeout_s: float = 40) -> int:
        """SIGTERM, and the exit code."""
        assert self.daemon is not None
        return self.daemon.stop(timeout_s)
