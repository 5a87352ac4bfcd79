"""The readiness gate: rules match only while the probe comes through (I3).

Steering starts after the first probe that succeeds and stops when one fails; failures are tried again
with back-off. The state and its reason are what `status` shows.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tidegate_agent.probe import ProbeFailed
from tidegate_agent.steering.backend import Steering, SteeringFailed

PROBE_EVERY_S = 5.0
FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class GateState:
    """`next_step` is what to type when the gate is closed."""

    open: bool
    reason: str
    next_step: str = ""


class Gate:
    """Opens and closes steering by the probe's word, until cancelled."""

    def __init__(
        self,
        *,
        steering: Steering,
        probe: Callable[[], Awaitable[None]],
        changed: Callable[[GateState], None],
        probe_every_s: float = PROBE_EVERY_S,
        retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._steering = steering
        self._probe = probe
        self._changed = changed
        self._probe_every_s = probe_every_s
        self._first_retry_s = retry_s
        self.state = GateState(False, "starting: the agent has not yet come through its own probe")

    async def run(self) -> None:
        retry_s = self._first_retry_s
        while True:
            try:
                await self._probe()
                if not self.state.open:
                    self._steering.activate()
            except (ProbeFailed, SteeringFailed) as failed:
                with contextlib.suppress(SteeringFailed):  # then the lease ends by itself
                    self._steering.suspend()
                self._become(GateState(False, failed.cause, failed.next_step))
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
            else:
                self._become(GateState(True, ""))
                retry_s = self._first_retry_s
                await asyncio.sleep(self._probe_every_s)

    def _become(self, state: GateState) -> None:
        if state != self.state:
            self.state = state
            self._changed(state)
