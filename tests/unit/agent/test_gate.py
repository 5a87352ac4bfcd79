"""The readiness gate: steering follows the probe (I3)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tidegate_agent.gate import Gate, GateState
from tidegate_agent.probe import ProbeFailed
from unit.agent.recording_steering import RecordingSteering


class ScriptedProbe:
    """Fails with a cause while it has one; `tried` is set at each try."""

    def __init__(self) -> None:
        self.cause = ""
        self.tries = 0

    async def __call__(self) -> None:
        self.tries += 1
        if self.cause:
            raise ProbeFailed(self.cause, next_step="type this")


class World:
    def __init__(self) -> None:
        self.steering = RecordingSteering(lambda: 0.0)
        self.probe = ScriptedProbe()
        self.told: list[GateState] = []
        self.gate = Gate(
            steering=self.steering,
            probe=self.probe,
            changed=self.told.append,
            probe_every_s=0.01,
            retry_s=0.01,
        )

    async def until(self, told: int) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < told:
                await asyncio.sleep(0.001)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world


async def test_nothing_is_steered_before_the_probe_came_through(world: World) -> None:
    """I3: the cause and what to type are the state, until it works."""
    world.probe.cause = "the system trust store does not vouch for this node's CA"
    running = asyncio.create_task(world.gate.run())
    await world.until(told=1)
    assert not world.steering.active
    assert world.gate.state == GateState(False, world.probe.cause, "type this")

    world.probe.cause = ""
    await world.until(told=2)
    assert world.steering.active
    assert world.gate.state.open
    running.cancel()


async def test_a_later_failure_withdraws_steering_and_recovery_restores_it(world: World) -> None:
    """I3: rules go out when a later probe fails."""
    running = asyncio.create_task(world.gate.run())
    await world.until(told=1)
    assert world.steering.active
    world.probe.cause = "the responder did not answer the probe"
    await world.until(told=2)
    assert not world.steering.active

    world.probe.cause = ""
    await world.until(told=3)
    assert world.steering.active
    running.cancel()


async def test_a_kernel_that_refuses_is_a_reason_too(world: World) -> None:
    """I3: the gate never believes that it steers when it does not."""
    world.steering.broken = True
    running = asyncio.create_task(world.gate.run())
    await world.until(told=1)

    assert world.gate.state.reason == "the kernel refused"
    assert not world.steering.active
    running.cancel()
