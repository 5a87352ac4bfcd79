"""The agent at work: one TaskGroup, lease and heartbeat, an orderly end.

This is the process that accepts connections. It renews the lease from the same loop, and its supervisor
kills it when that loop stops turning. On SIGTERM the redirection goes first, then the listeners, then what
is intercepted is waited for, at most 30 s. Connections that are spliced then still are others' and outlive
the agent: this process lets go of all it has but them, and lingers until the last one ends.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import structlog

from tidegate_agent.activity import Activity
from tidegate_agent.bypass import BypassWatch, Cause, Segment, why_bypassed
from tidegate_agent.config import AgentConfig, tls_ports
from tidegate_agent.forwarding import Forwarding
from tidegate_agent.gate import Gate, GateState
from tidegate_agent.naming import Naming
from tidegate_agent.own_traffic import exemption
from tidegate_agent.pause import Pause, PauseFile
from tidegate_agent.probe import Failure, Probe, ProbeFailed
from tidegate_agent.reload import Reloading
from tidegate_agent.status import ReloadStatus
from tidegate_agent.steering import Steering, SteeringFailed
from tidegate_agent.supervisor import Heartbeat
from tidegate_core.errors import TidegateError
from tidegate_proxy.http.crash_journal import CrashJournal
from tidegate_proxy.http.http_server import HttpServer
from tidegate_proxy.interception.interceptor import Interceptor

DRAIN_S = 30.0
LOOKUPS_END_S = 2.0


class Agent:
    """What runs between start and stop; its parts are open when it is made."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        activity: Activity,
        steering: Steering,
        naming: Naming,
        http: HttpServer,
        interceptor: Interceptor,
        listeners: Sequence[socket.socket],
        heartbeat: Heartbeat,
        journal: CrashJournal,
        probe: Probe,
        forwarding: Forwarding | None,
        reloading: Reloading,
        watch: BypassWatch,
    ) -> None:
        self._log = structlog.get_logger()
        self._config = config
        self._activity = activity
        self._steering = steering
        self._naming = naming
        self._http = http
        self._interceptor = interceptor
        self._listeners = listeners
        self._heartbeat = heartbeat
        self._journal = journal
        self._pause_file = PauseFile(config.runtime_dir / "paused.json")
        self._withdrawn = False
        self._probe = probe
        self._forwarding = forwarding
        self._reloading = reloading
        self._watch = watch
        self._watched_ports = tls_ports(config.registry)
        self.gate = Gate(
            steering=steering,
            probe=self._come_through_the_probe,
            changed=self._gate_changed,
            now=_now,
            paused=self._pause_file.read(now=_now()),
            resumed=self._pause_file.remove,
            restore=self._restore_rules if config.steering.backend != "none" else _nothing,
            failed=activity.steering_failed,
        )

    def pause(self, pause: Pause) -> None:
        """Stop steering at once and keep it so until the pause ends; what is in flight goes on."""
        self.gate.pause(pause)
        # Nobody comes back over a connection that is open between two requests.
        self._http.stop_keeping_alive()
        try:
            self._pause_file.write(pause)
        except OSError as error:
            self._log.warning("a crash would end the pause: it cannot be written down", cause=str(error))

    async def reload(self) -> ReloadStatus:
        """Follow the configuration as its file is now; raises TidegateError when the old one goes on."""
        try:
            done = await self._reloading.reload()
        except TidegateError as error:
            self._log.warning(
                "reload refused, the old configuration goes on",
                cause=error.cause,
                next_step=error.next_step,
            )
            raise
        self._log.info("reloaded", **msgspec.structs.asdict(done))
        self.gate.probe_soon()
        return done

    def steers(self, config: AgentConfig) -> None:
        """What is steered has changed: other ports are watched, maybe."""
        ports = tls_ports(config.registry)
        if config.steering.backend != "none" and ports != self._watched_ports:
            self._watched_ports = ports
            self._watch.close()
            self._watch.open(exemption=exemption(config.steering.mark, uid=os.geteuid()), ports=ports)

    async def _come_through_the_probe(self) -> None:
        try:
            await self._probe()
        except ProbeFailed as failed:
            if failed.of is Failure.TRUST:
                self._reloading.trust_store_fails()
            raise
        self._reloading.trust_store_holds(self._probe.held)

    def why_bypassed(self, segment: Segment, *, forwarded: bool) -> Cause:
        """Why no rule redirected a connection of now."""
        addresses, destination = self._naming.addresses, segment.destination
        if self._forwarding is not None and self._forwarding.steers(segment.source.address):
            forwarded = False
        return why_bypassed(
            paused=self.gate.paused is not None,
            steering=self._steering.active,
            known=addresses.knows(destination),
            steered_for_s=addresses.steered_for_s(destination),
            forwarded=forwarded,
        )

    async def serve(
        self, stopping: asyncio.Event, hangup: asyncio.Event, leave: Callable[[], Awaitable[None]]
    ) -> None:
        """Serve until told to stop, then end in order; `leave` closes every part that `open` made.

        `hangup` asks for a reload.
        """
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(self._beat(), name="lease and heartbeat")
            connections = tasks.create_task(self._interceptor.serve(self._listeners), name="accept")
            steering = [
                tasks.create_task(self.gate.run(), name="gate"),
                tasks.create_task(self._naming.run(), name="naming"),
                tasks.create_task(self._obey(hangup), name="reload"),
            ]
            if self._forwarding is not None:
                steering.append(tasks.create_task(self._forwarding.run(), name="containers"))
            await stopping.wait()
            for task in steering:
                task.cancel()
            await self._drain()
            if self._interceptor.splices:
                await self._linger(leave, connections, stopping, beating)
            beating.cancel()

    async def _linger(
        self,
        leave: Callable[[], Awaitable[None]],
        connections: asyncio.Task[None],
        stopping: asyncio.Event,
        beating: asyncio.Task[None],
    ) -> None:
        """Be nothing but the spliced connections, until they end, SIGTERM comes again or time is up."""
        linger = self._config.steering.linger
        self._log.info(
            "lingering for connections that were spliced",
            pid=os.getpid(),
            connections=self._interceptor.splices,
            at_most=str(linger),
            next_step=f"to cut them: kill {os.getpid()}",
        )
        stopping.clear()
        await leave()
        beating.cancel()
        self._heartbeat.linger()
        _detach()
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait(
            {connections, told}, timeout=linger.total_seconds(), return_when=asyncio.FIRST_COMPLETED
        )
        told.cancel()
        self._interceptor.cut()

    async def _obey(self, hangup: asyncio.Event) -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            with suppress(TidegateError):  # it was logged
                await self.reload()

    async def _drain(self) -> None:
        """The redirection first, then the listeners, then what is intercepted.

        The rules that let answers to look-ups out need no lease and stay until those on their way are sent.
        """
        self._log.info("stopping", drain_s=DRAIN_S)
        self._withdrawn = True
        with suppress(SteeringFailed):  # then it ends with the table
            self._steering.suspend()
        self._journal.close()  # what ends from here on was told to: no request is to blame
        if not self._heartbeat.bereaved:  # a crash of the supervisor is no stop
            self._pause_file.remove()
        self._interceptor.stop_accepting()
        self._http.stop_keeping_alive(for_good=True)
        await self._naming.settle(LOOKUPS_END_S)
        self._steering.withdraw()
        await self._interceptor.drain(DRAIN_S)

    async def _beat(self) -> None:
        """Renew the lease and tell the supervisor, from the loop that accepts, four times a lease or more."""
        pause_s = min(self._config.steering.lease.total_seconds() / 4, 0.5)
        while True:
            try:
                if not self._withdrawn:
                    self._steering.renew()
                    self._naming.tend()
                if self._probe.store_changed():
                    self.gate.probe_soon()
            except SteeringFailed as error:
                self._activity.steering_errors["renewal"] += 1
                self._log.error("steering failed", cause=error.cause)
                self.gate.probe_soon()
            self._heartbeat.beat()
            await asyncio.sleep(pause_s)

    def _restore_rules(self) -> None:
        """Put in anew what another program took away, all of it; raises StartRefused or SteeringFailed."""
        self._log.warning("the rules are gone: putting them in anew")
        self._steering.withdraw()
        self._steering.open()
        self._naming.steer()
        self._naming.addresses.restore()
        self._activity.steering_restored += 1

    def _gate_changed(self, state: GateState) -> None:
        """Told about the first verdict too: from then on the agent works, steering or not."""
        if state.open:
            self._log.info("steering", hosts=list(self._reloading.in_effect.host_patterns))
        else:
            self._log.warning("not steering", reason=state.reason, next_step=state.next_step)
        self._heartbeat.ready()


def _detach() -> None:
    """Let go of the standard streams: who waits for their end does not wait for the connections of others."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def _nothing() -> None:
    """No rules, none to put in anew."""


def _now() -> datetime:
    return datetime.now(UTC)
