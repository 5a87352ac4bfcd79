"""Who the clients are, and which of them are left alone: asked for each connection that would be intercepted.

Fails open: whatever goes wrong in finding out who connects leaves the client unknown, and an unknown client
is intercepted. One that refuses our certificate is remembered for a day, or until it restarts.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import structlog

from tidegate_agent.clients.cgroup import Cgroups, hierarchy
from tidegate_agent.clients.owner import Owner, Owners
from tidegate_agent.clients.process import Process, Processes
from tidegate_agent.clients.sock_diag import SockDiag, SocketFacts
from tidegate_agent.clients.verdict import RUNTIMES, Reason, doubtful, is_stale, what_to_type
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.interceptor import Arrival, distrusts

DISTRUST_KEPT = timedelta(hours=24)
_HANDSHAKES = 4096
_DISTRUSTING = 1024
_SHOWN = 256
_SHOWN_OF_A_GROUP = 16

K = TypeVar("K")
V = TypeVar("V")

Identity = tuple[str, int, int]
"""("process", pid, start time), or ("group", cgroup id, uid) where no right tells which process it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who opened a connection: one process for sure, or several that may have."""

    identity: Identity
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced:
    """A client that is left alone; `until` None: for as long as it runs."""

    process: Process
    exe: str
    reason: Reason
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A known runtime on this host's network, whether it trusts us, and what to type if not."""

    name: str
    pid: int
    trusts: bool
    action: str


class Clients:
    """Answers `Interceptor.why_splice`, and hears of its failed handshakes."""

    def __init__(
        self,
        *,
        find: Callable[[Endpoint, Endpoint], SocketFacts | None],
        owners: Owners,
        processes: Processes,
        trusted_since: Callable[[str], float | None],
        dialled_for: Callable[[Endpoint], Endpoint] = lambda original: original,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`trusted_since` tells since when, in seconds since the epoch, the store has vouched for a host, or
        for all of them without one; `dialled_for` the peer of the client's own socket, by the original
        destination.
        """
        self._find = find
        self._dialled_for = dialled_for
        self._owners = owners
        self._processes = processes
        self._trusted_since = trusted_since
        self._now = now
        self._handshakes: OrderedDict[Endpoint, Client] = OrderedDict()
        self._distrusting: OrderedDict[Identity, datetime] = OrderedDict()
        self._shown: OrderedDict[tuple[int, int], Spliced] = OrderedDict()
        self._last_group: tuple[Owner, tuple[Process, ...]] | None = None
        self._failing = False

    @classmethod
    def open(
        cls,
        parts: AsyncExitStack,
        *,
        bundle: Path | None,
        trusted_since: Callable[[str], float | None],
        dialled_for: Callable[[Endpoint], Endpoint],
    ) -> "Clients":
        """The register of this host; without sock_diag every client is unknown."""
        processes = Processes(bundle=bundle)
        parts.callback(processes.close)
        try:
            mounted = hierarchy(Path("/proc/self/mountinfo").read_text(errors="replace"))
        except OSError:
            mounted = None
        find: Callable[[Endpoint, Endpoint], SocketFacts | None]
        try:
            find = parts.enter_context(SockDiag()).find
        except OSError as error:
            structlog.get_logger().warning("clients are not told apart", cause=f"no sock_diag: {error}")
            find = _nobody
        return cls(
            find=find,
            owners=Owners(Cgroups(mounted), processes),
            processes=processes,
            trusted_since=trusted_since,
            dialled_for=dialled_for,
        )

    def why_splice(self, peer: Endpoint, original: Endpoint, host: str = "") -> str | None:
        """The reason to leave this connection to a host alone, None to intercept it."""
        try:
            client = self._client(peer, original)
        except OSError as error:
            if not self._failing:
                structlog.get_logger().warning("clients are not told apart now", cause=str(error))
            self._failing = True
            return None
        self._failing = False
        if client is None:
            return None
        until = self._distrusting.get(client.identity)
        if until is not None and self._now() < until:
            self._show(client.processes, Reason.DISTRUSTED, until)
            return Reason.DISTRUSTED
        found = doubtful(client.processes, trusted_since=self._since(client.processes, host))
        if found is not None:
            process, reason = found
            self._show((process,), reason, None)
            return reason
        # By the time a handshake fails its socket is gone, and with it the way to its owner.
        _put(self._handshakes, peer, client, _HANDSHAKES)
        return None

    def handshake_failed(self, arrival: Arrival, error: OSError) -> None:
        """Remember a client that does not accept our certificate."""
        client = self._handshakes.pop(arrival.peer, None)
        if client is None or not distrusts(error):
            return
        until = self._now() + DISTRUST_KEPT
        _put(self._distrusting, client.identity, until, _DISTRUSTING)
        self._show(client.processes, Reason.DISTRUSTED, until)
        names = sorted({process.name for process in client.processes})
        structlog.get_logger().warning(
            "a client does not trust this node's CA: its connections are spliced from now on",
            client=", ".join(names),
            pids=[process.pid for process in client.processes],
            next_step="restart it, or let it read the system's trust store",
        )

    def spliced(self) -> tuple[Spliced, ...]:
        """Those left alone that still run, as they were left alone last."""
        now = self._now()
        for key, shown in tuple(self._shown.items()):
            running = self._processes.read(shown.process.pid)
            same = running is not None and running.started_ticks == shown.process.started_ticks
            if not same or (shown.until is not None and now >= shown.until) or self._trusts_by_now(shown):
                del self._shown[key]
        return tuple(self._shown.values())

    def who(self, peer: Endpoint, destination: Endpoint) -> tuple[str, int | None]:
        """The executable and pid of a connection's client; "" and None where they cannot be told."""
        try:
            client = self._client(peer, destination)
        except OSError:
            return "", None
        if client is None or not client.processes:
            return "", None
        first, *others = client.processes
        if others:  # one of a group: its name, where they share one
            return (first.name if all(each.name == first.name for each in others) else ""), None
        return self._processes.exe(first.pid) or first.name, first.pid

    def runtimes(self) -> tuple[Runtime, ...]:
        """Every known runtime that shares this host's network."""
        return tuple(self._runtimes())

    def _runtimes(self) -> Iterator[Runtime]:
        since = self._trusted_since("")
        for process in self._processes.named(RUNTIMES):
            if not self._processes.on_this_network(process.pid):
                continue
            refused = self._distrusting.get(_identity(process))
            trusts = process.sees_store and not is_stale(process, since) and since is not None and not refused
            action = "" if trusts else what_to_type(process.name, self._processes.service(process.pid))
            if not process.sees_store:
                action = "trust this node's CA where it runs: it has a trust store of its own"
            yield Runtime(name=process.name, pid=process.pid, trusts=trusts, action=action)

    def _client(self, peer: Endpoint, original: Endpoint) -> Client | None:
        # A connection that nobody redirected has its destination for its peer, whatever steers.
        facts = self._find(peer, self._dialled_for(original)) or self._find(peer, original)
        if facts is None:
            return None
        owner = self._owners.of(facts)
        if not owner.certain:
            return self._group(facts, owner) if owner.pids else None
        process = self._processes.reread(owner.pids[0])
        return None if process is None else Client(identity=_identity(process), processes=(process,))

    def _group(self, facts: SocketFacts, owner: Owner) -> Client:
        """The processes of a group, read once for as long as `Owners` gives the same answer."""
        if self._last_group is None or self._last_group[0] is not owner:
            read = tuple(process for pid in owner.pids if (process := self._processes.read(pid)) is not None)
            self._last_group = (owner, read)
        return Client(identity=("group", facts.cgroup_id, facts.uid), processes=self._last_group[1])

    def _since(self, processes: Sequence[Process], host: str) -> float | None:
        """Since when the store vouches for the host, where that matters: to runtimes. Looks at files."""
        return self._trusted_since(host) if any(process.name in RUNTIMES for process in processes) else None

    def _trusts_by_now(self, shown: Spliced) -> bool:
        """The anchor was taken back, or was older than thought."""
        return shown.reason is Reason.NOT_RESTARTED and not is_stale(shown.process, self._trusted_since(""))

    def _show(self, processes: Sequence[Process], reason: Reason, until: datetime | None) -> None:
        for process in processes[:_SHOWN_OF_A_GROUP]:
            key = (process.pid, process.started_ticks)
            shown = self._shown.get(key)
            if shown is None or (shown.reason, shown.until) != (reason, until):
                exe = self._processes.exe(process.pid) or process.name
                _put(self._shown, key, Spliced(process=process, exe=exe, reason=reason, until=until), _SHOWN)


def _identity(process: Process) -> Identity:
    return ("process", process.pid, process.started_ticks)


def _put(kept: "OrderedDict[K, V]", key: K, value: V, bound: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > bound:
        kept.popitem(last=False)


def _nobody(_peer: Endpoint, _original: Endpoint) -> SocketFacts | None:
    return None
