"""Wiring of `tidegate agent`: configuration -> lock -> supervisor -> agent.

The supervisor stays tiny: everything heavy is imported by the agent it forks.
"""

import contextlib
import os
import sys

from tidegate_agent.config import AgentConfig
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.single import SingleInstance
from tidegate_agent.steering import remains
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.supervisor import Heartbeat, say, supervise
from tidegate_core.errors import TidegateError
from tidegate_core.notify import Notifier


def start(config: AgentConfig, source: ConfigSource, *, dry_run: bool) -> int:
    """Run the agent until it is told to stop, or print what it would do; the exit code."""
    if dry_run:
        from tidegate_agent.dry_run import describe

        sys.stdout.write(describe(config))
        return 0
    keeper = None if config.steering.backend == "none" else Keeper()  # before any other descriptor
    notifier = Notifier.of(os.environ, pid=os.getpid())
    with SingleInstance.acquire(config.runtime_dir) as lock:
        _say(remains.clean_up())
        source.forget(config.runtime_dir)
        try:
            return supervise(
                lambda heartbeat: _run(source.accepted(config), source, heartbeat, lock, keeper),
                lease_s=config.steering.lease.total_seconds(),
                bereaved=lambda farewell: _say(remains.end_steering(farewell)),
                cleanup=lambda: _clean_up(config.steering.port, keeper),
                notify=notifier.send,
            )
        finally:
            source.forget(config.runtime_dir)
            with contextlib.suppress(OSError):
                config.socket_path.unlink()  # a killed agent's, of whom no more come


def _clean_up(port: int, keeper: Keeper | None) -> None:
    """After the last agent: nothing of ours stays."""
    if keeper is not None:
        keeper.let_go(port)
    remains.clean_up()


def _say(done: list[str]) -> None:
    for line in done:
        say(line)


def _run(
    config: AgentConfig,
    source: ConfigSource,
    heartbeat: Heartbeat,
    lock: SingleInstance,
    keeper: Keeper | None,
) -> int:
    if keeper is not None:
        keeper.hold()
    from tidegate_agent.agent_process import run

    try:
        return run(config, source, heartbeat, keeper, let_go=lock.let_go)
    except TidegateError as error:
        sys.stderr.write(f"tidegate: {error}\n")
        return 1
