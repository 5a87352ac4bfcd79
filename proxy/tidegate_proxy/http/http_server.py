"""HTTP/1.1 framing of intercepted connections (RFC 9112), on aiohttp's low-level server.

Which site a request is for, its connection or its target says (`addressing`). What to answer is decided
elsewhere (`RegistryService.answer`); here it is written, and each request is counted once. Fails open: what
goes wrong before the first byte of an answer becomes a verbatim pass-through to the registry, and so does a
request that the process died of twice (I1); what goes wrong later cuts the connection, so that nobody takes a
part for the whole (I2).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

from tidegate_proxy.http.addressing import Addressed, Addressing, misdirected
from tidegate_proxy.http.at_hand import AtHand
from tidegate_proxy.http.crash_journal import CrashedTwice, CrashJournal, name_of
from tidegate_proxy.http.hot_path import HotConnection, HotConnections
from tidegate_proxy.http.served import Served, Tally
from tidegate_proxy.interception.interceptor import Arrival
from tidegate_proxy.oci.oci_error import OciError
from tidegate_proxy.registry.answer import Answer, Incoming
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site
from tidegate_proxy.storage.store import DigestMismatch
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

_MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 640
KEEPALIVE_S = 75.0
_READ_BUFFER_BYTES = 256 * 1024
_CLOSE_S = 0.05  # 0 would mean for ever


class Service(Protocol):
    """What answers requests: registry semantics over a store and upstreams."""

    async def answer(self, incoming: Incoming) -> Answer: ...

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        """An answer that needs no waiting, to a plain GET or HEAD."""
        ...

    async def pass_through(self, incoming: Incoming) -> Answer:
        """The registry's own answer, untouched; raises UpstreamUnreachable."""
        ...


class HttpServer:
    """Makes the protocol for each intercepted connection and answers its requests."""

    def __init__(
        self,
        *,
        service: Service,
        addressing: Callable[[Arrival], Addressing | None],
        tally: Tally,
        probe_host: str,
        journal: CrashJournal,
    ) -> None:
        self._service = service
        self._journal = journal
        self._addressing = addressing
        self._tally = tally
        self._probe_host = probe_host
        self._server = web.Server(self._handle, handler_cancellation=True)
        self._at_hand = AtHand(service=service, journal=journal, tally=tally)
        self._hot = HotConnections(idle_s=KEEPALIVE_S)

    def protocol(self, arrival: Arrival) -> asyncio.Protocol:
        """The protocol for one connection, before its TLS handshake.

        Whom it is for is decided here and stays so, whatever is configured meanwhile.
        """
        addressing = self._addressing(arrival)
        return HotConnection(
            addressing=addressing,
            at_hand=self._at_hand,
            full=lambda ends: _Connection(self._server, arrival, addressing, ends=ends),
            connections=self._hot,
        )

    def stop_keeping_alive(self, *, for_good: bool = False) -> None:
        """Close idle connections and let the others end with the answer they are at, or the next.

        With `for_good` that goes for connections that are yet to come, too.
        """
        self._hot.end(for_good=for_good)
        self._server.pre_shutdown()

    async def close(self) -> None:
        await self._server.shutdown(_CLOSE_S)
        self._tally.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        assert isinstance(request.protocol, _Connection)  # this server makes no other
        arrival = request.protocol.arrival
        if request.protocol.ends:
            request.protocol.close()
        if arrival.sni == self._probe_host:
            return web.Response(text="tidegate\n")
        addressing = request.protocol.addressing
        addressed = (
            misdirected(arrival.sni)
            if addressing is None
            else addressing.of(request.headers.get("Host", ""), request.raw_path)
        )
        if not isinstance(addressed, Addressed):
            return (await _write(request, addressed))[0]
        site, target = addressed.site, addressed.target
        if request.headers.get("Expect", "").lower() == "100-continue":
            await _transmit(request, b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _Body(request)
        incoming = Incoming(
            site=site,
            method=request.method,
            target=target,
            headers=request.headers,
            body=body.chunks() if request.can_read_body else None,
        )
        slot = self._journal.enter(name := name_of(request.method, site.host, target))
        try:
            return await self._respond(
                request, incoming, body, started, untouched=self._journal.crashed_twice(name)
            )
        finally:
            self._journal.leave(slot)

    async def _respond(
        self, request: web.BaseRequest, incoming: Incoming, body: "_Body", started: float, *, untouched: bool
    ) -> web.StreamResponse:
        answer, cause = await self._decide(incoming, body, untouched=untouched)
        sent = 0
        try:
            try:
                response, sent = await _write(request, answer)
            except _NotBegun as failed:
                answer, cause = await self._fail_open(incoming, body, failed.cause)
                response, sent = await _write(request, answer)
            return response
        except _CutShort as cut:
            sent, cause = cut.sent_bytes, cut.__cause__
            return cut.response
        finally:
            self._tally.add(
                Served(
                    site=incoming.site,
                    method=request.method,
                    path=incoming.path,
                    status=answer.status,
                    cache=answer.cache,
                    kind=answer.kind,
                    sent_bytes=sent,
                    received_bytes=body.received_bytes,
                    cause=cause,
                ),
                time.monotonic() - started,
            )

    async def _decide(
        self, incoming: Incoming, body: "_Body", *, untouched: bool
    ) -> tuple[Answer, BaseException | None]:
        if untouched:
            return await self._fail_open(incoming, body, CrashedTwice())
        try:
            try:
                return await _begun(await self._service.answer(incoming)), None
            except DigestMismatch:
                # A short body, of which nothing was sent: the next time it may be right.
                return await _begun(await self._service.answer(incoming)), None
        except UpstreamUnreachable as error:
            return _unavailable(error), error
        except DigestMismatch as error:
            # Not to be passed through instead: it would be the same wrong bytes (I2).
            return _unavailable(error), error
        except Exception as error:  # noqa: BLE001 - fail open: a bug of ours must not end a pull (I1)
            return await self._fail_open(incoming, body, error)

    async def _fail_open(
        self, incoming: Incoming, body: "_Body", cause: Exception
    ) -> tuple[Answer, BaseException]:
        """The registry's own answer instead of ours, and why; an error where it cannot be had any more."""
        if incoming.body is not None:
            if body.received_bytes:
                return _unavailable(cause), cause  # it is spent and cannot be sent again
            incoming = replace(incoming, body=body.chunks())
        try:
            return await self._service.pass_through(incoming), cause
        except UpstreamUnreachable as unreachable:
            return _unavailable(unreachable), unreachable
        except Exception as error:  # noqa: BLE001 - a bug here too: an answer is due, and nothing is left to try
            return _unavailable(error), error


class _Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, which remembers how the connection came here."""

    __slots__ = ("addressing", "arrival", "ends")

    def __init__(
        self, server: web.Server, arrival: Arrival, addressing: Addressing | None, *, ends: bool
    ) -> None:
        """`ends`: with its first answer."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # documented as "no log"; the hint lacks it
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=_MAX_FIELD_BYTES,
            max_field_size=_MAX_FIELD_BYTES,
            max_headers=_MAX_FIELDS,
            read_bufsize=_READ_BUFFER_BYTES,
            auto_decompress=False,
            lingering_time=2.0,
        )
        self.arrival = arrival
        self.addressing = addressing
        self.ends = ends

    def close(self) -> None:
        """End with the answer it is at, or now when it waits for a request: aiohttp leaves that one open."""
        waits = self._waiter is not None and not self._waiter.done()
        super().close()
        if waits and self.transport is not None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take the rest of a body that is under way also after `close`, where aiohttp would drop it."""
        request = self._current_request
        if not self._close or request is None or request.content.is_eof():
            super().data_received(data)
            return
        self._close = False
        try:
            super().data_received(data)
        finally:
            self._close = True


async def _begun(answer: Answer) -> Answer:
    """The same answer with the first piece of its body at hand: what fails before it can still be mended."""
    if isinstance(answer.body, bytes):
        return answer
    pieces = answer.body
    first = await anext(pieces, None)

    async def from_first() -> AsyncIterator[bytes | memoryview]:
        if first is not None:
            yield first
            async for piece in pieces:
                yield piece

    return replace(answer, body=from_first())


class _Body:
    """A request's body as it arrives, counted."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.received_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._request.content.iter_any():
            self.received_bytes += len(chunk)
            yield chunk


class _CutShort(Exception):
    """An answer ended before its end: the connection has been cut."""

    def __init__(self, response: web.StreamResponse, sent_bytes: int) -> None:
        super().__init__()
        self.response = response
        self.sent_bytes = sent_bytes


class _NotBegun(Exception):
    """An answer could not even be begun: nothing of it has reached the client."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


async def _write(request: web.BaseRequest, answer: Answer) -> tuple[web.StreamResponse, int]:
    response = await _prepared(request, answer)
    if isinstance(answer.body, bytes):
        return response, len(answer.body)
    sent = 0
    try:
        async for piece in answer.body:
            await response.write(piece)
            sent += len(piece)
        await response.write_eof()
    except Exception as error:
        # Half an answer is out. An orderly end would make it look whole, so cut.
        if request.transport is not None:
            request.transport.abort()
        raise _CutShort(response, sent) from error
    return response, sent


async def _prepared(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """The response with its head rendered; aiohttp sends that with the first bytes of the body."""
    try:
        headers = answer.labelled()
        if isinstance(answer.body, bytes):
            response: web.StreamResponse = web.Response(
                status=answer.status, headers=headers, body=answer.body or None
            )
        else:
            response = web.StreamResponse(status=answer.status, headers=headers)
            if "Content-Length" not in headers and answer.status not in (204, 304):
                response.enable_chunked_encoding()
        await response.prepare(request)
        return response
    except Exception as error:
        writer = request.writer
        writer.length = None
        if isinstance(writer, StreamWriter):
            writer.chunked = False  # or the answer that comes instead would be framed twice
        raise _NotBegun(error) from error


async def _transmit(request: web.BaseRequest, raw: bytes) -> None:
    writer: AbstractStreamWriter = request.writer
    await writer.write(raw)


def _unavailable(error: BaseException) -> Answer:
    problem = OciError("UNAVAILABLE", str(error))
    return Answer(
        status=502 if isinstance(error, UpstreamUnreachable) else 500,
        headers=CIMultiDict({"Content-Type": "application/json"}),
        body=problem.body(),
    )
