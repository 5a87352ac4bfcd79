"""Wiring of `tidegate agent`: configuration -> lock -> supervisor -> agent.

The supervisor stays tiny: everything heavy is imported by the agent it forks.
"""

import contextlib
import os
import sys

from tidegate_agent.config import AgentConfig
from tidegate_agent.single import SingleInstance
from tidegate_agent.supervisor import Heartbeat, supervise
from tidegate_core.errors import TidegateError
from tidegate_core.notify import Notifier


def start(config: AgentConfig, *, dry_run: bool) -> int:
    """Run the agent until it is told to stop, or print what it would do; the exit code."""
    if dry_run:
        from tidegate_agent.dry_run import describe

        sys.stdout.write(describe(config))
        return 0
    notifier = Notifier.of(os.environ, pid=os.getpid())
    with SingleInstance.acquire(config.runtime_dir) as lock:
        try:
            return supervise(
                lambda heartbeat: _run(config, heartbeat, lock),
                lease_s=config.steering.lease.total_seconds(),
                cleanup=lambda: _remove_keeper(config),
                notify=notifier.send,
            )
        finally:
            with contextlib.suppress(OSError):
                config.socket_path.unlink()  # a killed agent's, of whom no more come


def _run(config: AgentConfig, heartbeat: Heartbeat, lock: SingleInstance) -> int:
    from tidegate_agent.agent import run

    try:
        return run(config, heartbeat, let_go=lock.let_go)
    except TidegateError as error:
        sys.stderr.write(f"tidegate: {error}\n")
        return 1


def _remove_keeper(config: AgentConfig) -> None:
    if config.steering.backend != "none":
        from tidegate_agent.steering.keeper import remove_keeper_when_unused

        # Best effort: without the right to, there is no keeper either, and the next start adopts one.
        with contextlib.suppress(OSError):
            remove_keeper_when_unused(config.steering.port)
