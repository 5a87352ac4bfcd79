"""The tiny agent from outside: started in a namespace, commanded line by line, killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from .namespace import Namespace
from .place import LEASE_S, NAMES

SOURCES = [str(Path(__file__).parents[2] / part) for part in ("agent", "dns", "proxy", "core")]


class Agent:
    """The tiny agent in the node, commanded line by line."""

    def __init__(
        self,
        node: Namespace,
        *,
        backend: str = "nft",
        port: int = 8443,
        exemption: str = "0x74/0xff",
        setuid: int | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        command = ["nsenter", f"--net={node.path}"]
        if setuid is not None:
            rights = "-all,+net_admin,+net_raw,+bpf"
            command += ["setpriv", f"--reuid={setuid}", "--clear-groups", "--inh-caps", rights]
            command += ["--ambient-caps", rights]
        self._lock = Path(tempfile.gettempdir()) / f"tidegate-test-{uuid4().hex}.lock"
        program = Path(__file__).with_name("host.py")
        self.process = subprocess.Popen(
            [*command, sys.executable, "-P", str(program), backend, str(port), str(lease_s), exemption],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(SOURCES),
                "XTABLES_LOCKFILE": str(self._lock),  # the machine's own is not ours to touch
            },
        )

    def do(self, do: str, given: Any = None) -> Any:
        answer = self.ask(do, given)
        assert "refused" not in answer, answer["refused"]
        return answer["ok"]

    def ask(self, do: str, given: Any = None) -> dict[str, Any]:
        self.send(do, given)
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def send(self, do: str, given: Any = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "with": given}) + "\n")
        self.process.stdin.flush()

    def steer_dns(self, *resolvers: str, names: Sequence[str] = NAMES) -> None:
        self.do("names", names)
        self.do("steer_dns", resolvers)

    def steer(self, *endpoints: tuple[str, int, float]) -> "Agent":
        self.do("open")
        self.do("activate")
        self.do("add", endpoints)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._lock.unlink(missing_ok=True)
