"""Notices the registry connections that went past the agent, and counts them by cause (N10).

A connection that no rule redirected is known by the name in its ClientHello, which the kernel copies (see
`steering.watch`): whoever resolved that name, and however. Others' names are looked at and forgotten. At rest
this costs nothing. It steers nothing: where it cannot be, it says so, and the agent works as ever.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from tidegate_agent.bypass.cause import Cause
from tidegate_agent.bypass.packet import Segment, parse_segment
from tidegate_agent.steering.encoding import new_table
from tidegate_agent.steering.exemption import Exemption
from tidegate_agent.steering.netlink import NftSocket
from tidegate_agent.steering.nflog import Logged, LogGroup
from tidegate_agent.steering.watch import FORWARDED, watch_table
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.client_hello import ClientHello, parse_client_hello
from tidegate_proxy.interception.interceptor import Arrival

WhySplice = Callable[[Arrival], str | None]

_RECENT = 16
_SEEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """One connection; `exe` and `pid` where its process could be told, "" and None otherwise."""

    at: datetime
    cause: str
    host: str
    address: Endpoint
    exe: str
    pid: int | None


class BypassWatch:
    """Counts into `bypassed`, and keeps the last few."""

    def __init__(
        self,
        *,
        bypassed: Counter[str],
        steered: Callable[[str, int], bool],
        why: Callable[[Segment, bool], Cause],
        who: Callable[[Endpoint, Endpoint], tuple[str, int | None]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`steered` is asked with a name and a port; `why` with a connection's first words and whether it is
        another host's; `who` with the client's endpoint and the destination, for an executable and a pid.
        """
        self._bypassed = bypassed
        self._steered = steered
        self._why = why
        self._who = who
        self._now = now
        self._seen: OrderedDict[tuple[Endpoint, Endpoint, int], None] = OrderedDict()
        self._recent: deque[Bypass] = deque(maxlen=_RECENT)
        self._group: LogGroup | None = None
        self._nft: NftSocket | None = None
        self.blind = "not started"
        """Why connections that went past the agent are not noticed; empty when they are."""

    @property
    def recent(self) -> tuple[Bypass, ...]:
        """The last few, the newest first."""
        return tuple(reversed(self._recent))

    def open(self, *, exemption: Exemption, ports: Iterable[int]) -> None:
        """Watch from now on, or say why not."""
        try:
            self._group = LogGroup()
            self._nft = NftSocket()
            self._nft.commit(
                new_table(watch_table(exemption=exemption, ports=ports, group=self._group.group))
            )
        except OSError as error:
            self.close()
            self.blind = f"the kernel refused: {error}"
            structlog.get_logger().warning("connections past the agent are not noticed", cause=str(error))
            return
        self.blind = ""
        asyncio.get_running_loop().add_reader(self._group.fileno(), self._read)

    def close(self) -> None:
        """Take the table out. Idempotent."""
        if self._nft is not None:
            self._nft.close()
        if self._group is not None:
            if not self.blind:
                asyncio.get_running_loop().remove_reader(self._group.fileno())
            self._group.close()
        self._nft = self._group = None
        self.blind = self.blind or "stopped"

    def noted(self, why_splice: WhySplice) -> WhySplice:
        """The same question, asked of connections to registries; those left alone are counted."""

        def asked(arrival: Arrival) -> str | None:
            reason = why_splice(arrival)
            if reason is not None:
                self._note(reason, arrival.sni, arrival.peer, arrival.original)
            return reason

        return asked

    def heard(self, logged: Logged) -> None:
        """The first words of a connection that nobody redirected."""
        segment = parse_segment(logged.packet)
        if segment is None or segment.destination.address.is_loopback or self._is_again(segment):
            return
        hello = parse_client_hello(segment.data)
        if not isinstance(hello, ClientHello) or hello.sni is None:
            return
        if not self._steered(hello.sni, segment.destination.port):
            return
        cause = self._why(segment, logged.prefix == FORWARDED)
        self._note(cause, hello.sni, segment.source, segment.destination)

    def _read(self) -> None:
        if self._group is not None:
            for logged in self._group.read():
                self.heard(logged)

    def _is_again(self, segment: Segment) -> bool:
        """Whether it is sent again, because its receipt was not acknowledged."""
        key = (segment.source, segment.destination, segment.sequence)
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return False

    def _note(self, cause: str, host: str, peer: Endpoint, destination: Endpoint) -> None:
        self._bypassed[cause] += 1
        exe, pid = self._who(peer, destination)
        self._recent.append(
            Bypass(at=self._now(), cause=cause, host=host, address=destination, exe=exe, pid=pid)
        )
