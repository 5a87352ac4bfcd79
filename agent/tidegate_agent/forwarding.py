"""Steers the containers behind this host's bridges, where the configuration says so (N21).

Each bridge gets a listener at this host's addresses on it, bound to it, and rules. Redirecting in prerouting
turns a forwarded connection into one to this host, which a firewall's input rules may drop: no rule of ours
can prevent that. So every redirection is expected to arrive behind all filters; when one does not, the
bridge's rules go out at once, its connections go past the agent as before, and it is tried again later. A
client whose connection was dropped sends again within a second and gets through; one that was refused has
lost it.

What this host's resolvers answer containers is learned on its way, after the fact: the first connection to a
new address may go past. Nothing of a container's own is looked into.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from tidegate_agent.bridges import Bridge, Bridges
from tidegate_agent.bypass.packet import parse_datagram, parse_segment
from tidegate_agent.status import ForwardedStatus
from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.forwarded import ANSWERED, ARRIVED, SENT, Forwarded, ForwardedBridge
from tidegate_agent.steering.nflog import LogGroup
from tidegate_dns.address import LearnedAddress
from tidegate_dns.message import parse_question
from tidegate_dns.policy import lesson
from tidegate_proxy.endpoint import Endpoint, IPAddress

_LOOK_EVERY_S = 60.0
_SETTLE_S = 0.2
_ARRIVES_WITHIN_S = 0.25
_FIRST_RETRY_S = 60.0
_LONGEST_RETRY_S = 3600.0
_MOST_BRIDGES = 64
_MOST_EXPECTED = 4096
_BACKLOG = 256


@dataclass(slots=True)
class _Steered:
    """A bridge that counts, its listeners, and why it is not steered now."""

    bridge: Bridge
    listeners: list[socket.socket] = field(default_factory=list)
    fault: str = ""
    action: str = ""
    retry_s: float = _FIRST_RETRY_S
    again_at: float = 0.0

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Of the addresses at which there is a listener: a redirection elsewhere would find nobody."""
        heard = {ipaddress.ip_address(listener.getsockname()[0]) for listener in self.listeners}
        return tuple(address.network for address in self.bridge.addresses if address.ip in heard)


class Forwarding:
    """Follows the bridges, and keeps their rules as they should be, until cancelled."""

    def __init__(
        self,
        *,
        port: int,
        steer: Callable[[Forwarded], None],
        listen_too: Callable[[socket.socket], None],
        leave: Callable[[socket.socket], None],
        resolvers: Callable[[], Sequence[IPAddress]],
        covers: Callable[[str], bool],
        learn: Callable[[str, Sequence[LearnedAddress]], None],
    ) -> None:
        """`steer` raises SteeringFailed, `learn` too; `covers` tells whether a name is steered."""
        self._log = structlog.get_logger()
        self._port = port
        self._steer = steer
        self._listen_too = listen_too
        self._leave = leave
        self._resolvers = resolvers
        self._covers = covers
        self._learn = learn
        self._steered: dict[int, _Steered] = {}
        self._expected: dict[Endpoint, asyncio.TimerHandle] = {}
        self._told: Forwarded | None = None
        self._news = asyncio.Event()
        self._group: LogGroup | None = None

    def covers(self, address: IPAddress) -> bool:
        """Whether a client with this address is behind a bridge that counts."""
        return any(
            address in own.network and address != own.ip
            for each in self._steered.values()
            for own in each.bridge.addresses
        )

    def steers(self, address: IPAddress) -> bool:
        """Whether the connections of this address are redirected, as far as bridges go."""
        return any(address in network for each in self._ready() for network in each.networks)

    def status(self) -> list[ForwardedStatus]:
        """Every bridge that counts, and why it is not steered now."""
        return [
            ForwardedStatus(
                bridge=each.bridge.name,
                networks=[str(network) for network in each.networks],
                steered=not each.fault,
                reason=each.fault,
                action=each.action,
            )
            for each in self._steered.values()
        ]

    async def run(self) -> None:
        """Follow the bridges until cancelled; then take out what was put in."""
        loop = asyncio.get_running_loop()
        try:
            self._group = LogGroup()
            bridges = Bridges()
        except OSError as error:
            self._log.error("containers are not steered", cause=str(error))
            return
        loop.add_reader(bridges.fileno(), self._news.set)
        loop.add_reader(self._group.fileno(), self._read)
        try:
            while True:
                self._news.clear()
                bridges.forget_news()
                self._look(bridges)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._sleep_s()):
                        await self._news.wait()
                await asyncio.sleep(_SETTLE_S)  # a container comes with a handful of changes
        finally:
            loop.remove_reader(bridges.fileno())
            loop.remove_reader(self._group.fileno())
            bridges.close()
            self.close()

    def close(self) -> None:
        """Let go of every listener and of the log. Idempotent."""
        for handle in self._expected.values():
            handle.cancel()
        self._expected.clear()
        for each in self._steered.values():
            self._deafen(each)
        self._steered.clear()
        if self._group is not None:
            self._group.close()
            self._group = None

    def put_in(self) -> None:
        """Put the rules in anew, after they were gone; raises SteeringFailed."""
        self._told = None
        self._tell()

    def _look(self, bridges: Bridges) -> None:
        try:
            found = {bridge.index: bridge for bridge in bridges.read()[:_MOST_BRIDGES]}
        except OSError as error:
            self._log.warning("bridges cannot be read", cause=str(error))
            return
        now = asyncio.get_running_loop().time()
        for index in [index for index in self._steered if found.get(index) != self._steered[index].bridge]:
            self._deafen(self._steered.pop(index))
        for index, bridge in found.items():
            each = self._steered.setdefault(index, _Steered(bridge))
            if each.fault and now >= each.again_at:
                each.fault = each.action = ""
            if not each.fault and not each.listeners:
                self._hear(each)
        try:
            self._tell()
        except SteeringFailed as error:
            self._log.error("containers are not steered", cause=error.cause)

    def _hear(self, each: _Steered) -> None:
        """Listen at each address of a bridge, for what comes in by it."""
        for own in each.bridge.addresses:
            try:
                each.listeners.append(_listening(each.bridge, own.ip, self._port))
            except OSError as error:
                self._fail(
                    each,
                    f"port {self._port} on {own.ip} cannot be listened on: {error.strerror}",
                    "set [steering] port to a free one",
                )
                return
            self._listen_too(each.listeners[-1])

    def _deafen(self, each: _Steered) -> None:
        for listener in each.listeners:
            self._leave(listener)
            listener.close()
        each.listeners.clear()

    def _fail(self, each: _Steered, fault: str, action: str) -> None:
        each.fault, each.action = fault, action
        each.again_at = asyncio.get_running_loop().time() + each.retry_s
        each.retry_s = min(2 * each.retry_s, _LONGEST_RETRY_S)
        self._deafen(each)
        self._log.warning(
            "containers are not steered", bridge=each.bridge.name, reason=fault, next_step=action
        )

    def _ready(self) -> list[_Steered]:
        return [each for each in self._steered.values() if not each.fault]

    def _tell(self) -> None:
        """Have the kernel know what is wanted, where that has changed."""
        wanted = Forwarded(
            bridges=tuple(
                ForwardedBridge(interface=each.bridge.name, networks=each.networks) for each in self._ready()
            ),
            resolvers=tuple(self._resolvers()),
            group=self._group.group if self._group is not None else 0,
        )
        if wanted != self._told:
            self._steer(wanted)
            self._told = wanted

    def _sleep_s(self) -> float:
        now = asyncio.get_running_loop().time()
        return min(
            (max(0.0, each.again_at - now) for each in self._steered.values() if each.fault),
            default=_LOOK_EVERY_S,
        )

    # What the kernel tells

    def _read(self) -> None:
        for logged in self._group.read() if self._group is not None else ():
            if logged.prefix == ANSWERED:
                self._answered(logged.packet)
            elif (segment := parse_segment(logged.packet)) is not None:
                if logged.prefix == SENT:
                    self._expect(segment.source)
                elif logged.prefix == ARRIVED and (handle := self._expected.pop(segment.source, None)):
                    handle.cancel()

    def _expect(self, source: Endpoint) -> None:
        if source not in self._expected and len(self._expected) < _MOST_EXPECTED:
            loop = asyncio.get_running_loop()
            self._expected[source] = loop.call_later(_ARRIVES_WITHIN_S, self._missed, source)

    def _missed(self, source: Endpoint) -> None:
        """A connection was redirected and has not arrived: a filter between the two dropped it."""
        del self._expected[source]
        for each in self._ready():
            if any(source.address in network for network in each.networks):
                name = each.bridge.name
                self._fail(
                    each,
                    f"this host's firewall drops what comes in by {name} for port {self._port}",
                    f"iptables -I INPUT -i {name} -p tcp --dport {self._port}"
                    " -m conntrack --ctstate DNAT -j ACCEPT",
                )
                self._news.set()
        with contextlib.suppress(SteeringFailed):  # then the lease ends it
            self._tell()

    def _answered(self, packet: bytes) -> None:
        answer = parse_datagram(packet)
        read = parse_question(answer) if answer is not None else None
        if answer is None or read is None or not self._covers(read[0].qname):
            return
        if addresses := lesson(answer).addresses:
            with contextlib.suppress(SteeringFailed):  # counted where the host's own answers are
                self._learn(read[0].qname, addresses)


def _listening(bridge: Bridge, address: IPAddress, port: int) -> socket.socket:
    """A listener that only what comes in by this bridge can reach."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.name.encode())
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
