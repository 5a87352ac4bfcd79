"""The agent's process: its loop, signals, and what is closed when it leaves."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import uvloop

from tidegate_agent.assembly import open_agent
from tidegate_agent.config import AgentConfig
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.steering import Keeper
from tidegate_agent.supervisor import Heartbeat
from tidegate_core import log as logging


def run(
    config: AgentConfig,
    source: ConfigSource,
    heartbeat: Heartbeat,
    keeper: Keeper | None,
    *,
    let_go: Callable[[], None],
) -> int:
    """The agent until it is told to stop; `let_go` is called when another may start. Raises StartRefused."""
    logging.configure()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, source, heartbeat, keeper, let_go))
    return 0


async def _serve(
    config: AgentConfig,
    source: ConfigSource,
    heartbeat: Heartbeat,
    keeper: Keeper | None,
    let_go: Callable[[], None],
) -> None:
    stopping, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with AsyncExitStack() as parts:
        agent = await open_agent(config, source, parts, heartbeat, keeper)

        async def leave() -> None:
            await parts.aclose()
            let_go()

        await agent.serve(stopping, hangup, leave)
