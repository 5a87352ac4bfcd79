"""Where redirected connections arrive: each is intercepted or goes on, byte for byte, to where it was going.

DESIGN 2, steps 4 and 5. A steered SNI is answered with our own certificate, and a request for a registry
without TLS as it came; everything else (another name, no name, another protocol, silence) is spliced to its
original destination. Nothing is consumed before that is decided.

Fails open: whatever goes wrong before the first byte is consumed, a bug in what decides or in what would
serve included, ends in a splice and not in an error. The one thing refused is a connection whose original
destination is this listener: dialling it would be dialling ourselves.

This module does not steer (it is told the original destination), speaks no HTTP, and does not close the
listeners that it is given.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import assert_never

from tidegate_proxy.endpoint import Endpoint, IPAddress
from tidegate_proxy.interception.authority import PROBE_HOST
from tidegate_proxy.interception.client_hello import ClientHello, NotTls
from tidegate_proxy.interception.http_head import HttpHead, NotHttp
from tidegate_proxy.interception.intercepted import Intercepted
from tidegate_proxy.interception.linger import reset
from tidegate_proxy.interception.peek import Unheard, peek_head, peek_hello
from tidegate_proxy.interception.splice import CHUNK_BYTES, splice
from tidegate_proxy.site import Scheme

_Name = tuple[str, int] | tuple[str, int, int, int]
_Heard = ClientHello | NotTls | HttpHead | NotHttp | Unheard

OUTCOMES: tuple[tuple[str, str], ...] = (
    ("intercepted", "steered"),
    ("intercepted", "probe"),
    ("spliced", "other_sni"),
    ("spliced", "no_sni"),
    ("spliced", "not_tls"),
    ("spliced", "other_scheme"),
    ("spliced", "no_http1"),
    ("spliced", "silent"),
    ("spliced", "incomplete"),
    ("spliced", "error"),
    ("refused", "own_address"),
    ("refused", "reset"),
    ("refused", "unreachable"),
    ("refused", "distrusted"),
    ("refused", "handshake"),
    ("refused", "no_descriptors"),
    ("refused", "error"),
)
"""Every outcome and reason that is ever observed, beside the reasons that `why_splice` gives, so that
counters can start at 0.
"""

_HANDSHAKE_TIMEOUT_S = 10.0
_ACCEPTS_AT_ONCE = 32
_MOST_WAITING = 4096  # no backlog is longer than net.core.somaxconn
_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_DISTRUST = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "UNSUPPORTED_CERTIFICATE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A connection to intercept: the name asked for, where it was going, and who opened it.

    Without TLS the name is that of the first request's Host field.
    """

    sni: str
    original: Endpoint
    peer: Endpoint


def distrusts(error: BaseException | None) -> bool:
    """Whether a client ended the handshake because it does not accept our certificate (RFC 8446 6.2)."""
    reason = getattr(error, "reason", None)
    return isinstance(error, ssl.SSLError) and isinstance(reason, str) and reason.endswith(_DISTRUST)


def _ignore(_arrival: Arrival, _error: OSError) -> None:
    return


def _no_reason(_arrival: Arrival) -> str | None:
    return None


class Interceptor:
    """The accepting loop, and every connection that came through it until it ends."""

    def __init__(
        self,
        *,
        original_dst: Callable[[socket.socket], Endpoint | None],
        scheme_of: Callable[[str, int], Scheme | None],
        tls_context: Callable[[str], ssl.SSLContext],
        http_protocol: Callable[[Arrival], asyncio.Protocol],
        dial: Callable[[Endpoint, str | None], Awaitable[socket.socket]],
        observe: Callable[[str, str], None],
        withheld: Callable[[Arrival], str | None] = _no_reason,
        why_splice: Callable[[Arrival], str | None] = _no_reason,
        handshake_failed: Callable[[Arrival, OSError], None] = _ignore,
        plain_http_on: Callable[[int], bool] = lambda _: False,
        hello_timeout_s: float = 2.0,
        max_connections: int = 4096,
    ) -> None:
        """`scheme_of` tells what the registry speaks that has this name and port, None where none has.
        `plain_http_on` says on which ports a registry without TLS may be asked for. `dial` bounds its own
        time; it is told, too, which registry's host the client asks for, if any. `withheld` is asked about
        each connection that would be intercepted, and `why_splice` about each that would be answered with our
        certificate: both for a reason to leave it alone. `handshake_failed` learns of every intercepted
        client that did not finish the handshake; `distrusts` tells whether it was for want of trust.
        """
        self._original_dst = original_dst
        self._scheme_of = scheme_of
        self._plain_http_on = plain_http_on
        self._tls_context = tls_context
        self._http_protocol = http_protocol
        self._dial = dial
        self._observe = observe
        self._withheld = withheld
        self._why_splice = why_splice
        self._handshake_failed = handshake_failed
        self._hello_timeout_s = hello_timeout_s
        self._max_connections = max_connections
        self._scratch = memoryview(bytearray(CHUNK_BYTES))
        self._listeners: tuple[socket.socket, ...] = ()
        self._ours: frozenset[Endpoint] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self._splicing: set[asyncio.Task[None]] = set()
        self._intercepted: set[Intercepted] = set()
        self._watching = False
        self._stopped = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def connections(self) -> int:
        """Connections in flight: undecided, spliced and intercepted."""
        return len(self._tasks) + len(self._intercepted)

    @property
    def splices(self) -> int:
        """Connections that are spliced, or about to be."""
        return len(self._splicing)

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Accept until `stop_accepting`, then return when what was undecided or spliced has ended.

        Cancelled, it cuts every connection.
        """
        self._listeners += tuple(listeners)
        self._ours = frozenset(_endpoint(listener.getsockname()) for listener in listeners)
        for listener in listeners:
            listener.setblocking(False)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._watch()
                try:
                    await self._stopped.wait()
                finally:
                    self.stop_accepting()
        except asyncio.CancelledError:
            self.cut()
            raise

    def listen_too(self, listener: socket.socket) -> None:
        """Accept on one more listener from now on."""
        listener.setblocking(False)
        self._listeners += (listener,)
        if self._watching:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def leave(self, listener: socket.socket) -> None:
        """Take what waits at this listener, then no more; what came by it goes on."""
        if listener in self._listeners:
            self._accept(listener, at_once=_MOST_WAITING)
            asyncio.get_running_loop().remove_reader(listener.fileno())
            self._listeners = tuple(each for each in self._listeners if each is not listener)

    def stop_accepting(self) -> None:
        """Take what waits already, then no more; those here go on. The listeners are the caller's to close.

        Who waits in the kernel's backlog has been told that it is connected: left there it would hang until
        the listener is closed, after the drain, and then be cut.
        """
        if not self._stopped.is_set():
            for listener in self._listeners:
                self._accept(listener, at_once=_MOST_WAITING)
        self._unwatch()
        self._stopped.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait for every connection but the spliced, and cut those that have not ended after `timeout_s`.

        Splices are connections of others, which would have outlived us had we not been in between: they go
        on until they end or are `cut`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            self._cut(self._tasks - self._splicing)

    def cut(self) -> None:
        """End every connection at once, the spliced with a reset."""
        self._cut(self._tasks)

    def _cut(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in tuple(tasks):
            task.cancel()
        for connection in tuple(self._intercepted):
            connection.abort()

    def _watch(self) -> None:
        if self._watching or self._stopped.is_set():
            return
        self._watching = True
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                asyncio.get_running_loop().remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket, at_once: int = _ACCEPTS_AT_ONCE) -> None:
        """Take what waits, within bounds: beyond `max_connections` the rest waits in the kernel's backlog.

        A node that stays full makes the agent's own probe wait as well, and so ends the steering.
        """
        for _ in range(at_once):
            if self.connections >= self._max_connections:
                self._unwatch()
                return
            try:
                sock, peername = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # The backlog stays readable: without a pause this would spin until a descriptor is free.
                    self._observe("refused", "no_descriptors")
                    self._unwatch()
                    asyncio.get_running_loop().call_later(_PAUSE_S, self._watch)
                    return
                continue  # this one connection was gone before it was taken
            sock.setblocking(False)
            task = self._group.create_task(self._connection(sock, peername))
            self._tasks.add(task)
            self._quiet.clear()
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._splicing.discard(task)
        self._ended()

    def _ended(self) -> None:
        if self.connections == self.splices:
            self._quiet.set()
        if not self._watching and self.connections < self._max_connections:
            self._watch()

    async def _connection(self, sock: socket.socket, peername: _Name) -> None:
        try:
            await self._handle(sock, peername)
        except OSError:
            self._observe("refused", "reset")
            sock.close()
        except Exception as error:  # noqa: BLE001 - one connection's bug must not end the accepting loop
            self._observe("refused", "error")
            _report("a connection is cut because of a bug", error)
            sock.close()
        except BaseException:
            sock.close()
            raise

    async def _handle(self, sock: socket.socket, peername: _Name) -> None:
        original = self._original(sock)
        if original is None:
            self._observe("refused", "own_address")
            reset(sock)
            return
        peer = _endpoint(peername)
        try:
            heard = await self._hear(sock, original.port)
        except OSError:
            raise  # the client reset the connection
        except Exception as error:  # noqa: BLE001 - peeking consumed nothing: the origin can still serve
            _report("a connection is spliced because of a bug", error)
            await self._splice(sock, original, None, "error")
            return
        match self._decide(heard, original, peer):
            case _Interception() as interception:
                await self._intercept(sock, interception)
            case str(reason):
                host = None if reason == "error" else self._host_of(heard, original.port)
                await self._splice(sock, original, host, reason)

    def _original(self, sock: socket.socket) -> Endpoint | None:
        """Where the connection was going; None when that is unknown or is this very listener."""
        original = self._original_dst(sock)
        if original is None or original == _endpoint(sock.getsockname()) or original in self._ours:
            return None
        return original

    async def _hear(self, sock: socket.socket, port: int) -> _Heard:
        heard = await peek_hello(sock, timeout_s=self._hello_timeout_s)
        if isinstance(heard, NotTls) and self._plain_http_on(port):
            return await peek_head(sock, timeout_s=self._hello_timeout_s)
        return heard

    def _decide(self, heard: _Heard, original: Endpoint, peer: Endpoint) -> "_Interception | str":
        """What to intercept with, or why to splice."""
        match heard:
            case Unheard.SILENT:
                return "silent"
            case Unheard.INCOMPLETE:
                return "incomplete"
            case NotTls() | NotHttp():
                return "not_tls"
            case HttpHead(host=host):
                return self._plain_interception(host, original, peer)
            case ClientHello(sni=sni, alpn=alpn):
                return "no_sni" if sni is None else self._interception(sni, alpn, original, peer)
            case _:
                assert_never(heard)

    def _interception(
        self, sni: str, alpn: tuple[str, ...], original: Endpoint, peer: Endpoint
    ) -> "_Interception | str":
        try:
            scheme = "https" if sni == PROBE_HOST else self._scheme_of(sni, original.port)
            if scheme != "https":
                return "other_sni" if scheme is None else "other_scheme"
            if alpn and "http/1.1" not in alpn:
                return "no_http1"
            # The probe is the agent's own: what is known of clients must not be able to end the steering.
            arrival = Arrival(sni=sni, original=original, peer=peer)
            if sni != PROBE_HOST:
                reason = self._withheld(arrival) or self._why_splice(arrival)
                if reason is not None:
                    return reason
            return _Interception(
                arrival=arrival, context=self._tls_context(sni), protocol=self._http_protocol(arrival)
            )
        except Exception as error:  # noqa: BLE001 - nothing is consumed yet: the origin can still serve
            _report("a connection is spliced because of a bug", error)
            return "error"

    def _plain_interception(self, host: str, original: Endpoint, peer: Endpoint) -> "_Interception | str":
        """No certificate is shown, so who the client is and whom it trusts does not matter."""
        try:
            if self._scheme_of(host, original.port) != "http":
                return "other_scheme"
            arrival = Arrival(sni=host, original=original, peer=peer)
            if (reason := self._withheld(arrival)) is not None:
                return reason
            return _Interception(arrival=arrival, context=None, protocol=self._http_protocol(arrival))
        except Exception as error:  # noqa: BLE001 - nothing is consumed yet: the origin can still serve
            _report("a connection is spliced because of a bug", error)
            return "error"

    async def _intercept(self, sock: socket.socket, interception: "_Interception") -> None:
        arrival = interception.arrival
        connection = Intercepted(interception.protocol, ended=self._connection_lost)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=interception.context,
                ssl_handshake_timeout=None if interception.context is None else _HANDSHAKE_TIMEOUT_S,
            )
        except OSError as error:
            self._observe("refused", "distrusted" if distrusts(error) else "handshake")
            self._handshake_failed(arrival, error)
            return
        self._observe("intercepted", "probe" if arrival.sni == PROBE_HOST else "steered")
        if not connection.lost:
            self._intercepted.add(connection)

    def _connection_lost(self, connection: "Intercepted") -> None:
        if connection in self._intercepted:
            self._intercepted.remove(connection)
            self._ended()

    def _host_of(self, heard: _Heard, port: int) -> str | None:
        """The registry's host that the client asks for, if it does."""
        match heard:
            case ClientHello(sni=str(host)) | HttpHead(host=host) if self._scheme_of(host, port) is not None:
                return host
            case _:
                return None

    async def _splice(self, sock: socket.socket, original: Endpoint, host: str | None, reason: str) -> None:
        task = asyncio.current_task()
        assert task is not None  # the one that `_accept` made
        self._splicing.add(task)
        self._ended()
        try:
            origin = await self._dial(original, host)
        except OSError:
            self._observe("refused", "unreachable")
            reset(sock)
            return
        self._observe("spliced", reason)
        await splice(sock, origin, scratch=self._scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interception:
    """Without `context` the client speaks plain HTTP."""

    arrival: Arrival
    context: ssl.SSLContext | None
    protocol: asyncio.Protocol


def _endpoint(name: _Name) -> Endpoint:
    """A socket's name as a value; an IPv4 peer of an IPv6 socket is named by its IPv4 address."""
    return Endpoint(_address(name[0]), name[1])


@lru_cache(maxsize=1024)
def _address(text: str) -> IPAddress:
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _report(message: str, error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
