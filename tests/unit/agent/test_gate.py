"""The readiness gate: steering follows the probe (I3) and the operator's word."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tidegate_agent.gate import Gate, GateState
from tidegate_agent.pause import Pause
from tidegate_agent.probe import Failure, ProbeFailed
from tidegate_agent.steering import SteeringFailed
from tidegate_core.errors import StartRefused
from unit.agent.recording_steering import RecordingSteering

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class ScriptedProbe:
    """Fails with a cause while it has one; `tried` is set at each try."""

    def __init__(self) -> None:
        self.cause = ""
        self.of = Failure.DNS
        self.tries = 0

    async def __call__(self) -> None:
        self.tries += 1
        if self.cause:
            raise ProbeFailed(self.cause, of=self.of, next_step="type this")


class World:
    def __init__(self, paused: Pause | None = None) -> None:
        self.now = NOON
        self.resumes: list[datetime] = []
        self.restored = 0
        self.refusal: StartRefused | SteeringFailed | None = None
        self.failures: list[str] = []
        self.steering = RecordingSteering(lambda: 0.0)
        self.probe = ScriptedProbe()
        self.told: list[GateState] = []
        self.gate = Gate(
            steering=self.steering,
            probe=self.probe,
            changed=self.told.append,
            now=lambda: self.now,
            paused=paused,
            resumed=lambda: self.resumes.append(self.now),
            restore=self.restore,
            failed=self.failures.append,
            probe_every_s=0.01,
            retry_s=0.01,
        )

    def restore(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.restored += 1
        self.probe.cause = ""
        self.steering.broken = False

    async def until(self, told: int) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < told:
                await asyncio.sleep(0.001)

    async def more_probes(self, count: int = 3) -> None:
        tries = self.probe.tries + count
        async with asyncio.timeout(5):
            while self.probe.tries < tries:
                await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the gate at work, and its first verdict told."""
        running = asyncio.create_task(self.gate.run())
        await self.until(told=1)
        yield
        running.cancel()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world


async def test_nothing_is_steered_before_the_probe_came_through(world: World) -> None:
    """I3: the cause and what to type are the state, until it works."""
    world.probe.cause = "the system trust store does not hold this node's CA as it is now"
    running = asyncio.create_task(world.gate.run())
    await world.until(told=1)
    assert not world.steering.active
    assert world.gate.state == GateState(False, world.probe.cause, "type this", "dns")

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
    world.refusal = SteeringFailed("and refused again")
    running = asyncio.create_task(world.gate.run())
    await world.until(told=1)

    assert world.gate.state.reason == "the kernel refused; and refused again"
    assert world.gate.state.failure == "kernel"
    assert not world.steering.active
    running.cancel()


async def test_a_pause_ends_steering_at_once_and_no_probe_begins_it_again(world: World) -> None:
    """Operations: `tidegate pause`; the probe goes on, for what status says of trust, and opens nothing."""
    async with world.running():
        world.gate.pause(Pause(until=None))
        assert not world.steering.active
        assert world.told[-1] == GateState(
            False, "paused by the operator until it is told to resume", "tidegate resume"
        )

        await world.more_probes()
        assert not world.steering.active
        assert world.gate.verdict.open
        assert not world.gate.state.open


async def test_a_probe_in_flight_when_the_pause_comes_does_not_open_the_gate() -> None:
    """I3 and the pause: the last word counts, not the last probe."""
    world = World()
    probing, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        probing.set()
        await go_on.wait()

    gate = Gate(steering=world.steering, probe=slow, changed=world.told.append, now=lambda: NOON)
    running = asyncio.create_task(gate.run())
    await probing.wait()
    gate.pause(Pause(until=None))
    go_on.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert gate.verdict.open
    assert not world.steering.active
    running.cancel()


async def test_resuming_waits_for_a_probe_and_then_steers(world: World) -> None:
    """I3: a pause may have been for a reason, so nothing is taken for granted after it."""
    async with world.running():
        world.gate.pause(Pause(until=None))
        await world.gate.resume()
        assert world.steering.active
        assert world.gate.state == GateState(True, "")
        assert world.resumes == [NOON]

        world.gate.pause(Pause(until=None))
        world.probe.cause = "the responder did not answer the probe"
        await world.gate.resume()
        assert not world.steering.active
        assert world.gate.state.reason == world.probe.cause


async def test_a_pause_ends_by_itself_when_its_time_is_over(world: World) -> None:
    """Operations: `tidegate pause --for 10m`."""
    async with world.running():
        world.gate.pause(Pause.lasting(timedelta(minutes=10), now=world.now))
        assert world.gate.state.reason == "paused by the operator until 2026-11-21T12:10:00Z"
        world.now = NOON + timedelta(minutes=10) - timedelta(seconds=1)
        await world.more_probes()
        assert not world.steering.active
        assert world.resumes == []

        world.now = NOON + timedelta(minutes=10)
        await world.more_probes()
        assert world.steering.active
        assert world.resumes == [world.now]


async def test_a_pause_from_before_the_start_is_kept_and_the_first_verdict_is_told() -> None:
    """N4: a crash does not end a pause; the agent is ready all the same."""
    world = World(Pause(until=None))
    async with world.running():
        await world.more_probes()

        assert not world.steering.active
        assert [state.next_step for state in world.told] == ["tidegate resume"]


async def test_a_kernel_that_refuses_to_suspend_leaves_the_pause_in_force(world: World) -> None:
    """The lease then ends by itself; what counts is that nobody renews it."""
    async with world.running():
        world.steering.broken = True
        world.gate.pause(Pause(until=None))

        assert not world.steering.active
        assert world.gate.paused == Pause(until=None)


async def test_rules_that_are_gone_are_put_in_anew_and_steering_goes_on(world: World) -> None:
    """I3: another program flushed them; withdrawn first, then open, then a probe that comes through."""
    async with world.running():
        world.probe.of, world.probe.cause = Failure.RULES, "the probe's look-up is not redirected any more"
        await world.until(told=3)

        assert [state.failure for state in world.told] == ["", "rules", ""]
        assert (world.restored, world.failures) == (1, ["rules"])
        assert world.steering.active


async def test_rules_that_the_kernel_does_not_take_back_are_tried_again(world: World) -> None:
    """I3: the state says both causes and what to type, and each failure is counted."""
    world.refusal = StartRefused("another agent steers this host", next_step="kill it")
    async with world.running():
        world.probe.of, world.probe.cause = Failure.RULES, "not redirected"
        await world.until(told=2)
        assert world.gate.state == GateState(
            False, "not redirected; another agent steers this host", "kill it", "rules"
        )
        assert not world.steering.active

        world.refusal = None
        await world.until(told=4)
        assert world.steering.active
        assert set(world.failures) == {"rules"}


@pytest.mark.parametrize("failure", [Failure.TRUST, Failure.DNS, Failure.TLS, Failure.IPV6])
async def test_other_failures_leave_the_rules_alone(world: World, failure: Failure) -> None:
    """I3: putting rules in anew would not help, and would cost those who are served."""
    async with world.running():
        world.probe.of, world.probe.cause = failure, "it failed"
        await world.until(told=2)
        await world.more_probes()

        assert world.restored == 0
        assert set(world.failures) == {failure.value}
        assert not world.steering.active


async def test_a_kernel_that_lost_the_rules_under_the_lease_gets_them_anew(world: World) -> None:
    """I3: what `activate` was refused may be for want of a table."""
    world.steering.broken = True
    async with world.running():
        await world.until(told=2)

        assert world.failures == ["kernel"]
        assert world.restored == 1
        assert world.steering.active
