"""The readiness gate: rules match only while the probe comes through (I3) and nobody has paused it.

Steering starts after the first probe that succeeds and stops when one fails; failures are tried again
with back-off. Where the probe finds that the rules are gone (another program flushed them, say), they are
put in anew before the next try. A pause stops it at once, whatever the probe says; the probe goes on, so that
`status` knows what a resume would meet, and opens nothing. The state and its reason are what `status` shows.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from tidegate_agent.pause import NEXT_STEP, Pause
from tidegate_agent.probe import Failure, ProbeFailed
from tidegate_agent.steering.backend import Steering, SteeringFailed
from tidegate_core.errors import StartRefused

PROBE_EVERY_S = 5.0
FIRST_RETRY_S = 0.5
RESUMED_WITHIN_S = 4.0
_LONGEST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class GateState:
    """`next_step` is what to type when the gate is closed; `failure` what the probe failed of, if it did."""

    open: bool
    reason: str
    next_step: str = ""
    failure: str = ""


REFUSED = "kernel"
"""The failure of a gate that the kernel, and not the probe, keeps closed."""

FAILURES = (*(failure.value for failure in Failure), REFUSED)


class Gate:
    """Opens and closes steering by the probe's word and the operator's, until cancelled."""

    def __init__(
        self,
        *,
        steering: Steering,
        probe: Callable[[], Awaitable[None]],
        changed: Callable[[GateState], None],
        now: Callable[[], datetime],
        paused: Pause | None = None,
        resumed: Callable[[], None] = lambda: None,
        restore: Callable[[], None] = lambda: None,
        failed: Callable[[str], None] = lambda _: None,
        probe_every_s: float = PROBE_EVERY_S,
        retry_s: float = FIRST_RETRY_S,
    ) -> None:
        """`paused` is a pause from before the start; `resumed` is told when one ends, by word or by time.

        `restore` puts the rules in anew, or raises StartRefused or SteeringFailed; `failed` is told of each
        failure, one of `FAILURES`.
        """
        self._steering = steering
        self._probe = probe
        self._changed = changed
        self._now = now
        self._resumed = resumed
        self._restore = restore
        self._failed = failed
        self._probe_every_s = probe_every_s
        self._first_retry_s = retry_s
        self._told: GateState | None = None
        self._probe_at_once = asyncio.Event()
        self._probed = asyncio.Event()
        self.paused = paused
        self.verdict = GateState(False, "starting: the agent has not yet come through its own probe")
        """The probe's word alone."""

    @property
    def state(self) -> GateState:
        """Whether connections are steered, or why not."""
        return self.verdict if self.paused is None else GateState(False, self.paused.reason, NEXT_STEP)

    def pause(self, pause: Pause) -> None:
        """Stop steering at once; connections that are established go on."""
        self.paused = pause
        self._suspend()
        self._probe_at_once.set()  # for the loop to learn how long it may sleep
        self._tell()

    async def resume(self) -> None:
        """End a pause: steering starts after a probe of now, which is waited for."""
        self._end_pause()
        self._probed.clear()
        self._probe_at_once.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUMED_WITHIN_S):
                await self._probed.wait()

    def probe_soon(self) -> None:
        """Something changed that the probe goes by: try now and not when it is due."""
        self._probe_at_once.set()

    async def run(self) -> None:
        retry_s = self._first_retry_s
        while True:
            self._probe_at_once.clear()
            if self.paused is not None and self.paused.is_over(self._now()):
                self._end_pause()
            try:
                await self._probe()
                if self.paused is None and not self._steering.active:
                    self._steering.activate()
            except (ProbeFailed, SteeringFailed) as failed:
                self._suspend()
                self.verdict = self._mended(failed)
                sleep_s, retry_s = retry_s, min(2 * retry_s, _LONGEST_RETRY_S)
            else:
                self.verdict = GateState(True, "")
                sleep_s, retry_s = self._probe_every_s, self._first_retry_s
            self._tell()
            if not self._probe_at_once.is_set():
                self._probed.set()
            await self._sleep(sleep_s)

    def _mended(self, failed: ProbeFailed | SteeringFailed) -> GateState:
        """The verdict, after what can be done about it was done."""
        failure = failed.of if isinstance(failed, ProbeFailed) else REFUSED
        self._failed(failure)
        if failure in (Failure.RULES, REFUSED):
            try:
                self._restore()
            except (StartRefused, SteeringFailed) as refused:
                return GateState(False, f"{failed.cause}; {refused.cause}", refused.next_step, failure)
        return GateState(False, failed.cause, failed.next_step, failure)

    def _suspend(self) -> None:
        with contextlib.suppress(SteeringFailed):  # then the lease ends by itself
            self._steering.suspend()

    def _end_pause(self) -> None:
        if self.paused is not None:
            self.paused = None
            self.verdict = GateState(False, "resuming: the agent has not yet come through its own probe")
            self._resumed()

    async def _sleep(self, seconds: float) -> None:
        """Until the next probe is due, or sooner: when the pause ends or somebody asks for one."""
        left_s = None if self.paused is None else self.paused.left_s(self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if left_s is None else min(seconds, left_s)):
                await self._probe_at_once.wait()

    def _tell(self) -> None:
        if self.state != self._told:
            self._told = self.state
            self._changed(self.state)
