"""The agent's own look-ups: A and AAAA of one absolute name, asked of the host's real resolvers.

Through exempt sockets, so never steered (I5), and never through libc, whose sockets cannot be exempted.
With failover from one resolver to the next, which the responder never does: one that kept silent is asked
last for a while, and where two disagree, one's "no such name" counts only when no earlier one has said
otherwise in time. A truncated answer is asked for again over TCP (RFC 7766). No search domains, no hosts
file, no following of a CNAME the resolver left open, no look-up without recursion.
"""

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from dnslib import DNSRecord

from tidegate_core.errors import TidegateError
from tidegate_dns.address import (
    DNS_PORT,
    Exempt,
    IPAddress,
    LearnedAddress,
    connect,
    connected_udp_socket,
    exempt_tcp_socket,
)
from tidegate_dns.message import MAX_MESSAGE, NOERROR, NXDOMAIN, parse_header
from tidegate_dns.policy import answers, lesson
from tidegate_dns.zone import is_host_name, normal

Answered = Callable[[IPAddress, bytes, bytes], None]
"""Takes a resolver, the query it was asked and its answer: `Responder.remember`."""


class ResolverUnreachable(TidegateError):
    """No resolver answered: the name may or may not exist."""


class NameNotFound(TidegateError):
    """A resolver answered that the name does not exist, or has no address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The waits and bounds of a look-up; in seconds where nothing else is said."""

    whole_s: float = 2.0
    next_resolver_s: float = 0.6
    """When no answer has come for so long, the next resolver (or the same again) is asked as well."""
    other_family_s: float = 0.25
    """How long AAAA may lag behind A, and A behind AAAA."""
    dark_s: float = 5.0
    """How long resolvers that did not answer are not asked again."""
    silent_s: float = 30.0
    """How long a resolver that refused, or kept silent where another answered, is asked last."""
    max_cached: int = 1024
    max_ttl_s: int = 300


class Lookup:
    """Resolves host names; look-ups of one name that run at the same time are one."""

    def __init__(
        self,
        resolvers: Sequence[IPAddress],
        *,
        over_tcp: bool = False,
        exempt: Exempt,
        clock: Callable[[], float],
        answered: Answered | None = None,
        patience: Patience | None = None,
        resolver_port: int = DNS_PORT,
        new_id: Callable[[], int] = lambda: secrets.randbelow(0x10000),
    ) -> None:
        self._resolvers = tuple(resolvers)
        self._over_tcp = over_tcp
        self._silent_until: dict[IPAddress, float] = {}
        self._exempt = exempt
        self._clock = clock
        self._answered = answered
        self._patience = patience or Patience()
        self._port = resolver_port
        self._new_id = new_id
        self._dark_until = float("-inf")
        self._cache: dict[str, tuple[float, tuple[LearnedAddress, ...]]] = {}
        self._running: dict[str, asyncio.Task[tuple[LearnedAddress, ...]]] = {}

    def set_resolvers(self, resolvers: Sequence[IPAddress], *, over_tcp: bool = False) -> None:
        """Ask these from now on, if need be over TCP alone; not held dark for what the old ones did."""
        self._over_tcp = over_tcp
        if tuple(resolvers) != self._resolvers:
            self._resolvers = tuple(resolvers)
            self._dark_until = float("-inf")
            self._silent_until.clear()

    @property
    def resolver_reachable(self) -> bool:
        return self._clock() >= self._dark_until

    async def addresses(self, host: str, *, last_resort: bool = False) -> tuple[LearnedAddress, ...]:
        """A then AAAA of `host`, or `host` itself when it is an address; never empty.

        Raises NameNotFound, and ResolverUnreachable: at once while the resolvers are known to be dark,
        a name looked up before included, since its registry is as far away as its resolver. A caller that
        has nothing else to go by is a `last_resort`: then dark resolvers are asked all the same.
        """
        try:
            return (LearnedAddress(ip_address(host), 0),)
        except ValueError:
            pass
        name = normal(host)
        if not is_host_name(name):
            raise _not_found(name)
        now = self._clock()
        dark = now < self._dark_until
        if dark and not last_resort:
            raise _unreachable(name, self._resolvers)
        cached = self._cache.get(name) if not dark else None
        if cached is not None and now < cached[0]:
            return cached[1]
        task = self._running.get(name)
        if task is None:
            # Shared by all who ask, so it belongs to none of their task groups; it ends by its own deadline.
            task = asyncio.get_running_loop().create_task(self._look_up(name))
            self._running[name] = task
            task.add_done_callback(lambda done: self._done(name, done))
        return await asyncio.shield(task)

    def _done(self, name: str, task: asyncio.Task[tuple[LearnedAddress, ...]]) -> None:
        self._running.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen, even when every caller has left

    async def _look_up(self, name: str) -> tuple[LearnedAddress, ...]:
        resolvers = self._resolvers
        tasks = [asyncio.create_task(self._ask_all(resolvers, name, rrtype)) for rrtype in ("A", "AAAA")]
        try:
            found = await self._both(tasks)
        finally:
            for task in tasks:
                task.cancel()
        if resolvers != self._resolvers:
            return _found(name, found, resolvers)  # the network changed on the way: nothing to keep of it
        if not any(answer is not None for answer in found):
            self._dark_until = self._clock() + self._patience.dark_s
            raise _unreachable(name, resolvers)
        self._dark_until = float("-inf")
        addresses = _found(name, found, resolvers)
        ttl_s = min(self._patience.max_ttl_s, *(a.ttl_s for a in addresses))
        self._cache.pop(name, None)
        self._cache[name] = (self._clock() + ttl_s, addresses)
        while len(self._cache) > self._patience.max_cached:
            del self._cache[next(iter(self._cache))]
        return addresses

    async def _both(self, tasks: Sequence[asyncio.Task[bytes | None]]) -> list[bytes | None]:
        """The two families' answers; one that lags behind addresses already there is not waited for."""
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ready = [task.result() for task in tasks if task.done()]
        if any(answer is not None and lesson(answer).addresses for answer in ready):
            await asyncio.wait(tasks, timeout=self._patience.other_family_s)
        else:
            await asyncio.wait(tasks)
        return [task.result() if task.done() else None for task in tasks]

    async def _ask_all(self, resolvers: Sequence[IPAddress], name: str, rrtype: str) -> bytes | None:
        """The first conclusive answer of any resolver; None when there is none in time."""
        query = _query(name, rrtype, self._new_id())
        turns = sorted(resolvers, key=self._is_silent) * 2
        waiting: dict[asyncio.Task[bytes | None], IPAddress] = {}
        denied: dict[IPAddress, bytes] = {}
        try:
            async with asyncio.timeout(self._patience.whole_s):
                while turns or waiting:
                    if turns:
                        resolver = turns.pop(0)
                        waiting[asyncio.create_task(self._ask(resolver, query))] = resolver
                    patience_s = self._patience.next_resolver_s if turns else None
                    done, _ = await asyncio.wait(
                        waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        answer = task.result()
                        if answer is not None:
                            self._note_silence(task, waiting)
                        resolver = waiting.pop(task)
                        if answer is None:
                            continue
                        if not _denies(answer):
                            return answer
                        denied[resolver] = answer
                        turns = [turn for turn in turns if turn != resolver]
                    open_yet = {*turns, *waiting.values()}
                    for resolver in resolvers:
                        if resolver in denied:
                            return denied[resolver]
                        if resolver in open_yet:
                            break
        except TimeoutError:
            pass
        finally:
            for task in waiting:
                task.cancel()
        return next(iter(denied.values()), None)

    def _is_silent(self, resolver: IPAddress) -> bool:
        return self._clock() < self._silent_until.get(resolver, float("-inf"))

    def _note_silence(
        self, answered: asyncio.Task[bytes | None], asked: Mapping[asyncio.Task[bytes | None], IPAddress]
    ) -> None:
        """Those that were asked before the one that answered, and say nothing, are asked last from now on."""
        until = self._clock() + self._patience.silent_s
        for task, resolver in asked.items():
            if task is answered:
                self._silent_until.pop(resolver, None)
                return
            if not task.done():
                self._silent_until[resolver] = until

    async def _ask(self, resolver: IPAddress, query: bytes) -> bytes | None:
        """One resolver's NOERROR or NXDOMAIN; None when it refuses, fails or cannot be reached."""
        try:
            answer = await (self._ask_tcp if self._over_tcp else self._ask_udp)(resolver, query)
            header = parse_header(answer)
            if header is not None and header.is_truncated and not self._over_tcp:
                answer = await self._ask_tcp(resolver, query)
                header = parse_header(answer)
        except (OSError, EOFError):
            self._silent_until[resolver] = self._clock() + self._patience.silent_s
            return None
        if header is None or header.rcode not in (NOERROR, NXDOMAIN):
            return None
        if self._answered is not None:
            self._answered(resolver, query, answer)
        return answer

    async def _ask_udp(self, resolver: IPAddress, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with connected_udp_socket(resolver, self._port, self._exempt) as sock:
            sock.send(query)
            while True:
                answer = await loop.sock_recv(sock, MAX_MESSAGE)
                if answers(query, answer):
                    return answer

    async def _ask_tcp(self, resolver: IPAddress, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with exempt_tcp_socket(resolver, self._exempt) as sock:
            await connect(sock, resolver, self._port)
            await loop.sock_sendall(sock, struct.pack(">H", len(query)) + query)
            (length,) = struct.unpack(">H", await _receive(sock, 2))
            answer = await _receive(sock, length)
        if not answers(query, answer):
            raise EOFError("the resolver answered another question")
        return answer


async def _receive(sock: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        piece = await asyncio.get_running_loop().sock_recv(sock, length - len(received))
        if not piece:
            raise EOFError("the resolver closed the connection")
        received += piece
    return bytes(received)


def _query(name: str, rrtype: str, id_: int) -> bytes:
    """A recursive query without EDNS: answers beyond 512 octets come over TCP."""
    record = DNSRecord.question(name, rrtype)
    record.header.id = id_
    return bytes(record.pack())


def _denies(answer: bytes) -> bool:
    header = parse_header(answer)
    return header is not None and header.rcode == NXDOMAIN


def _found(
    name: str, found: Sequence[bytes | None], resolvers: Sequence[IPAddress]
) -> tuple[LearnedAddress, ...]:
    addresses = tuple(a for answer in found if answer is not None for a in lesson(answer).addresses)
    if addresses:
        return addresses
    if None in found:
        raise _unreachable(name, resolvers)  # one family has no address, the other was not answered
    raise _not_found(name)


def _unreachable(name: str, resolvers: Sequence[IPAddress]) -> ResolverUnreachable:
    asked = ", ".join(str(resolver) for resolver in resolvers) or "none configured"
    server = f" @{resolvers[0]}" if resolvers else ""
    return ResolverUnreachable(
        f"no resolver answered for {name} ({asked})",
        next_step=f"dig{server} {name} shows whether it does now",
    )


def _not_found(name: str) -> NameNotFound:
    return NameNotFound(f"{name} does not exist or has no address", next_step=f"check the name: dig {name}")
