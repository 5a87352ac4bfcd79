"""The agent's parent: starts it, watches its heartbeats, kills it when it hangs, starts it again (DESIGN 4).

A hung agent still holds the connections that it accepted and those waiting in its backlog, so the lease in
the kernel is not enough: it has to die. This process imports the standard library only, holds no socket of
the data plane and no netlink socket, and forks the agent before any of those are opened. systemd talks to
this process: READY, WATCHDOG and STOPPING go out from here. The agent lends it its DNS sockets, so that
look-ups left unread in a hang can be told to go elsewhere.

The agent runs in a process group of its own, so that Ctrl-C reaches it once, through here. It gets SIGTERM
when this process dies (prctl(2), PR_SET_PDEATHSIG), ends gracefully and cleans up by itself.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn

from tidegate_agent.unread import give_up_unread

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_BEAT, _READY, _LENT, _LINGERING = b".", b"!", b"s", b"l"
_MAX_LENT = 64
_GAVE_UP = (
    "nothing is steered any more, pulls go direct; what it died of stands above "
    "(journalctl -u tidegate-agent); to start it again: systemctl restart tidegate-agent, or tidegate agent"
)
_CLOCK_TICK_S = 0.01  # the kernel's at 100 Hz: so much later than promised may the lease end
_PR_SET_PDEATHSIG = 1


class Heartbeat:
    """The agent's end: `beat` from the accepting loop at least every quarter of the lease, `ready` once."""

    def __init__(self, line: socket.socket, supervisor: int) -> None:
        """`supervisor` is its process id."""
        self._line = line
        self._supervisor = supervisor
        self.lingering = False

    @property
    def bereaved(self) -> bool:
        """Whether the supervisor has died: then SIGTERM comes from the kernel, and is nobody's order."""
        return os.getppid() != self._supervisor

    def beat(self) -> None:
        """Say that the accepting loop turns. Never blocks, never raises."""
        self._write(_BEAT)

    def ready(self) -> None:
        """Say that the agent works: from now on an exit is followed by a restart."""
        self._write(_READY)

    def lend(self, sockets: Sequence[socket.socket]) -> None:
        """Let the supervisor answer what is left unread on these UDP sockets; replaces those lent before."""
        self._write(_LENT, [sock.fileno() for sock in sockets[:_MAX_LENT]])

    def linger(self) -> None:
        """Go on without a supervisor, which ends: nobody restarts, kills or cleans up after this process."""
        _die_with_the_parent(0)
        self.lingering = True
        self._write(_LINGERING)

    def _write(self, byte: bytes, descriptors: Sequence[int] = ()) -> None:
        # A full line means that the supervisor is stopped, a closed one that it died: no reason to end here,
        # where nothing could be drained. SIGTERM comes when it died.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            socket.send_fds(self._line, [byte], descriptors)


def say(line: str) -> None:
    """Write one line to standard error; a closed terminal is no reason to stop supervising."""
    with contextlib.suppress(OSError):
        os.write(2, f"tidegate supervisor: {line}\n".encode())


def supervise(
    run: Callable[[Heartbeat], int],
    *,
    lease_s: float,
    cleanup: Callable[[], None],
    bereaved: Callable[[Callable[[], None]], None] = lambda _: None,
    start_s: float = 60.0,
    stop_s: float = 40.0,
    backoff_s: float = 0.1,
    backoff_max_s: float = 5.0,
    crashes: int = 5,
    crash_window_s: float = 60.0,
    notify: Callable[[str], object] = lambda _: None,
    tell: Callable[[str], None] = say,
) -> int:
    """Run the agent in a child process until it ends for good; returns its exit code, after `cleanup`.

    `bereaved` is called at once after each end of an agent: what would still redirect to it must stop. What
    it is given tells look-ups that came since the end to ask elsewhere: they wait in sockets that were lent.
    `start_s` bounds the wait for the first heartbeat, `stop_s` the time from SIGTERM to the end. An agent
    that lingers has ended well, as far as this goes. One that ends before it was ever ready refused to start:
    its exit code (128 + N for a signal) is passed on and nothing is tried again. After `crashes` ends within
    `crash_window_s` it gives up and returns 1.
    """
    pace = _Pace(lease_s, start_s, stop_s, backoff_s, backoff_max_s, crashes, crash_window_s)
    with _Signals() as signals:
        supervisor = _Supervisor(run, signals, pace, cleanup, bereaved, notify, tell)
        try:
            return supervisor.until_the_end()
        finally:
            if not supervisor.lingering:  # else the agent cleans up at its own end
                try:
                    cleanup()
                except Exception as error:  # noqa: BLE001 (whatever it is, the agent's exit code says more)
                    tell(f"could not clean up: {error}")


class _Signals:
    """Signals as bytes in a pipe that poll(2) can wait for."""

    def __enter__(self) -> "_Signals":
        self.descriptor, self._write_end = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write_end, False)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {s: signal.signal(s, lambda *_: None) for s in (*_FORWARDED, signal.SIGCHLD)}
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Undo; also in the child, where the agent installs its own handlers."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        os.close(self.descriptor)
        os.close(self._write_end)

    def take(self) -> bytes:
        """The numbers of the signals that arrived since the last call."""
        try:
            return os.read(self.descriptor, 4096)
        except BlockingIOError:
            return b""


class _Pace(NamedTuple):
    """Times in seconds, and how many ends are too many; a tuple, because dataclasses cost a MiB to import."""

    lease: float
    start: float
    stop: float
    backoff: float
    backoff_max: float
    crashes: int
    crash_window: float


class _Supervisor:
    def __init__(
        self,
        run: Callable[[Heartbeat], int],
        signals: _Signals,
        pace: _Pace,
        cleanup: Callable[[], None],
        bereaved: Callable[[Callable[[], None]], None],
        notify: Callable[[str], object],
        tell: Callable[[str], None],
    ) -> None:
        self._run = run
        self._signals = signals
        self._pace = pace
        self._cleanup = cleanup
        self._bereaved = bereaved
        self._notify = notify
        self._tell = tell
        self._child = 0
        self._lent: list[socket.socket] = []
        self._ever_ready = False
        self.lingering = False
        self._stop_by: float | None = None

    def until_the_end(self) -> int:
        """Start the agent again and again; returns the exit code of the end."""
        pace = self._pace
        ends: deque[float] = deque(maxlen=pace.crashes)
        wait_s = pace.backoff
        while True:
            started = time.monotonic()
            code = self._one_life()
            self._obey(self._signals.take())
            now = time.monotonic()
            if self.lingering or self._stop_by is not None or code == 0 or not self._ever_ready:
                return code if code >= 0 else 128 - code
            ends.append(now)
            if len(ends) == pace.crashes and now - ends[0] <= pace.crash_window:
                self._tell(f"the agent ended {pace.crashes} times in {now - ends[0]:.0f} s: giving up")
                self._tell(_GAVE_UP)
                return 1
            if now - started > pace.crash_window:
                wait_s = pace.backoff
            self._tell(f"the agent ended ({_words(code)}): starting it again in {wait_s:.1f} s")
            if self._pause(wait_s):
                return 0
            wait_s = min(wait_s * 2, pace.backoff_max)

    def _one_life(self) -> int:
        """Fork the agent and watch it to its end; its exit code, or minus the signal that ended it."""
        beats, theirs = socket.socketpair()
        beats.setblocking(False)
        theirs.setblocking(False)
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Held back until the child has left our signal pipe: what is meant for it must not look meant for us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        self._child = os.fork()
        if self._child == 0:
            beats.close()
            _be_the_agent(self._run, self._signals, before, Heartbeat(theirs, supervisor), self._cleanup)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        try:
            code = self._watch(beats)
            if not self.lingering:
                self._bereaved(self._give_up_unread)
            return code
        finally:
            beats.close()
            self._borrow([])
            self._child = 0

    def _watch(self, beats: socket.socket) -> int:
        poll = select.poll()
        poll.register(beats, select.POLLIN)
        poll.register(self._signals.descriptor, select.POLLIN)
        lease_s = self._pace.lease
        tick_s = lease_s / 4
        silent_s, allowed_s = 0.0, self._pace.start
        looked = time.monotonic()
        listening = True
        while True:
            wait_s = min(tick_s, allowed_s - silent_s)
            poll.poll(max(1, round(wait_s * 1000)))
            now = time.monotonic()
            # A gap of our own (stopped, starved, frozen with the agent) says nothing about the agent: it then
            # has a whole lease again to prove that it lives.
            silent_s = 0.0 if now - looked > lease_s / 2 + tick_s else silent_s + (now - looked)
            looked = now
            pid, status = os.waitpid(self._child, os.WNOHANG)  # before the pipe: its last words count
            heard = self._hear(beats) if listening else b""
            if heard is None:
                poll.unregister(beats)  # its end is readable for ever, and the agent's is near
                listening = False
            elif heard:
                silent_s, allowed_s = 0.0, lease_s + _CLOCK_TICK_S
                if _LINGERING in heard:
                    self._tell(f"process {self._child} goes on alone for the connections of others")
                    self.lingering = True
                    return 0
                if _READY in heard and not self._ever_ready:
                    self._ever_ready = True
                    self._notify("READY=1")
            self._notify("WATCHDOG=1")
            if pid:
                return os.waitstatus_to_exitcode(status)
            self._obey(self._signals.take())
            if silent_s >= allowed_s:
                self._tell(f"no heartbeat from process {self._child} for {silent_s:.1f} s: killing it")
                self._give_up_unread()
                return self._kill()
            if self._stop_by is not None and now > self._stop_by:
                self._tell(f"process {self._child} did not end within {self._pace.stop:.0f} s: killing it")
                return self._kill()

    def _hear(self, beats: socket.socket) -> bytes | None:
        """What has come since the last time; None at its end."""
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                some, descriptors, _, _ = socket.recv_fds(beats, 65536, _MAX_LENT)
                if _LENT in some:
                    self._borrow([socket.socket(fileno=descriptor) for descriptor in descriptors])
                if not some:
                    return heard or None
                heard += some
        return heard

    def _borrow(self, sockets: list[socket.socket]) -> None:
        for sock in self._lent:
            sock.close()
        self._lent = sockets

    def _give_up_unread(self) -> None:
        if given_up := give_up_unread(self._lent):
            self._tell(f"look-ups that it left unread, told to ask elsewhere: {given_up}")

    def _kill(self) -> int:
        os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status)

    def _obey(self, arrived: bytes) -> bool:
        """Pass signals on to the agent; true when one of them asks for the end."""
        for number in arrived:
            if number in _STOPPING and self._stop_by is None:
                self._stop_by = time.monotonic() + self._pace.stop
                self._notify("STOPPING=1")
            if number in _FORWARDED and self._child:
                os.kill(self._child, number)
        return self._stop_by is not None

    def _pause(self, seconds: float) -> bool:
        """Wait before the next start; true when asked to end meanwhile."""
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            poll.poll(max(1, round(left_s * 1000)))
            self._notify("WATCHDOG=1")
            if self._obey(self._signals.take()):
                return True
        return False


def _be_the_agent(
    run: Callable[[Heartbeat], int],
    signals: _Signals,
    mask: Iterable[int],
    heartbeat: Heartbeat,
    cleanup: Callable[[], None],
) -> NoReturn:
    """The child's whole life; never returns into the supervisor's stack."""
    code = 70  # EX_SOFTWARE
    try:
        os.setpgid(0, 0)
        signals.restore()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _die_with_the_parent(signal.SIGTERM)
        if not heartbeat.bereaved:  # else it died before the line above: nobody would tell us
            code = run(heartbeat)
            if heartbeat.lingering or heartbeat.bereaved:
                cleanup()  # nobody is left to do it
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 (a forked child must not unwind into its parent's stack)
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with_the_parent(number: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
