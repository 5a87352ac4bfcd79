"""The responder's TCP side: DNS over TCP (RFC 7766) relayed to the resolver the client dialled.

A relay, not a server: messages pass in both directions as they come, ids included, so pipelining,
answers out of order and zone transfers work as without us. Only steered names are looked at: their
answers are learned and kept on the way back, and told from memory while they are fresh or the resolver
is dark. Failing open: when the resolver cannot be dialled, the client's connection is reset, as near as
one can come to the refusal it would have seen.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tidegate_dns.address import Exempt, connect, exempt_tcp_socket
from tidegate_dns.framing import framed, read_message
from tidegate_dns.limits import Limits
from tidegate_dns.message import Question
from tidegate_dns.outcomes import Observe
from tidegate_dns.policy import Answer, Forward, Refuse, answers, decide, lesson
from tidegate_dns.reply import refused
from tidegate_dns.resolver import Resolver, Told
from tidegate_dns.udp import LearnNow
from tidegate_dns.zone import Zone

_LINGER_RESET = struct.pack("ii", 1, 0)
_FLUSH_S = 5.0


@dataclass(slots=True, kw_only=True, eq=False)
class Outstanding:
    """A steered query that the resolver has not answered yet."""

    query: bytes
    question: Question
    timer: asyncio.TimerHandle | None = None
    told: bool = False
    """The client has a stale answer already; the resolver's own is learned and kept, not passed on."""


class TcpConversation:
    """One client's connection and, once something is to be asked, one of ours to the same resolver."""

    def __init__(
        self,
        client: socket.socket,
        resolver: Resolver,
        resolver_port: int | None,
        *,
        zone: Callable[[], Zone],
        learn: LearnNow,
        observe: Observe,
        exempt: Exempt,
        ask_again: Callable[[bytes, Question], None],
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        """`resolver_port` is None when nothing may be forwarded: the probe's pseudo resolver."""
        self._sock = client
        self._resolver = resolver
        self._resolver_port = resolver_port
        self._zone = zone
        self._learn = learn
        self._observe = observe
        self._exempt = exempt
        self._ask_again = ask_again
        self._clock = clock
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(limits.tcp_outstanding_per_connection)
        self._outstanding: list[Outstanding] = []
        self._client: asyncio.StreamWriter
        self._upstream: asyncio.StreamWriter | None = None
        self._idle = asyncio.timeout(limits.tcp_idle_s)
        self.active_at = clock()

    async def run(self) -> None:
        """Relay until one side has ended, something breaks, or nothing moves for `tcp_idle_s`."""
        reader, self._client = await _streams(self._sock)
        try:
            async with self._idle, asyncio.TaskGroup() as group:
                group.create_task(self._pass_queries(reader, group))
            await _flush(self._client)
        except* (OSError, EOFError):  # a time-out is an OSError, too
            if not self._idle.expired():  # who was idle sees the end that servers make of it (RFC 7766, 6.4)
                self._sock_reset()
        finally:
            for outstanding in self._outstanding:
                if outstanding.timer is not None:
                    outstanding.timer.cancel()
            self._client.transport.abort()
            if self._upstream is not None:
                self._upstream.transport.abort()

    async def _pass_queries(self, client: asyncio.StreamReader, group: asyncio.TaskGroup) -> None:
        me = asyncio.current_task()
        while (query := await read_message(client)) is not None:
            self._moved()
            decision = decide(query, self._zone())
            match decision:
                case Refuse():
                    self._observe("ignored", 1)
                case Answer(message=message):
                    self._observe("local", 1)
                    await self._write(message)
                case Forward() if self._resolver_port is None:
                    self._observe("local", 1)
                    await self._write(refused(query))
                case Forward(steered=question):
                    if question is not None and await self._tell_from_memory(query, question):
                        continue
                    self._observe("forwarded", 1)
                    if self._upstream is None:
                        answering = await self._dial(query, question)
                        if answering is None:
                            continue
                        group.create_task(self._pass_answers(answering, me))
                    await self._ask(query, question)
        if self._upstream is not None:
            self._upstream.write_eof()

    async def _pass_answers(self, upstream: asyncio.StreamReader, asking: asyncio.Task[None] | None) -> None:
        while (answer := await read_message(upstream)) is not None:
            self._moved()
            now = self._clock()
            self._resolver.heard(now)
            asked = next((o for o in self._outstanding if answers(o.query, answer)), None)
            if asked is None:
                await self._write(answer)
                continue
            self._forget(asked)
            told = lesson(answer)
            if told.lookup_failed and (asked.told or await self._tell_stale(asked)):
                continue
            try:
                self._learn(asked.question.qname, told.addresses)
                self._resolver.keep(asked.query, asked.question, answer, told, now, udp=False)
            finally:  # whatever goes wrong with learning it, a true answer goes out (I1)
                if not asked.told:
                    await self._write(answer)
        for asked in list(self._outstanding):
            self._forget(asked)
            await self._tell_stale(asked)
        if asking is not None:
            asking.cancel()  # the resolver has closed: so does the client's connection

    async def _dial(self, query: bytes, question: Question | None) -> asyncio.StreamReader | None:
        """Connect to the resolver; None when the one query in hand was told from memory instead."""
        assert self._resolver_port is not None
        stale = question and self._resolver.stale(query, question, self._clock(), udp=False)
        patience_s = self._limits.stale_after_s if stale else self._limits.answer_within_s
        sock = exempt_tcp_socket(self._resolver.address, self._exempt)
        try:
            async with asyncio.timeout(patience_s):
                await connect(sock, self._resolver.address, self._resolver_port)
            reader, self._upstream = await _streams(sock)
        except OSError:
            sock.close()
            self._observe("unreachable", 1)
            if question is None or not stale:
                raise
            await self._tell(stale, question, "forwarded_stale")
            return None
        except BaseException:
            sock.close()
            raise
        return reader

    async def _ask(self, query: bytes, question: Question | None) -> None:
        assert self._upstream is not None
        if question is not None:
            await self._room.acquire()
            outstanding = Outstanding(query=query, question=question)
            outstanding.timer = self._loop.call_later(self._limits.stale_after_s, self._slow, outstanding)
            self._outstanding.append(outstanding)
        self._upstream.write(framed(query))
        await self._upstream.drain()

    def _slow(self, asked: Outstanding) -> None:
        told = self._resolver.stale(asked.query, asked.question, self._clock(), udp=False)
        if told is not None and not asked.told:
            asked.told = True
            self._observe("forwarded_stale", 1)
            try:
                self._learn(asked.question.qname, told.addresses)
            finally:
                self._client.write(framed(told.message))  # bounded by tcp_outstanding_per_connection

    async def _tell_from_memory(self, query: bytes, question: Question) -> bool:
        now = self._clock()
        told = self._resolver.fresh(query, now, udp=False)
        if told is not None:
            await self._tell(told, question, "hit")
            return True
        told = self._resolver.stale(query, question, now, udp=False) if self._resolver.is_dark else None
        if told is None:
            return False
        self._ask_again(query, question)
        await self._tell(told, question, "stale")
        return True

    async def _tell_stale(self, asked: Outstanding) -> bool:
        if asked.told:
            return True
        told = self._resolver.stale(asked.query, asked.question, self._clock(), udp=False)
        if told is None:
            return False
        asked.told = True
        await self._tell(told, asked.question, "forwarded_stale")
        return True

    async def _tell(self, told: Told, question: Question, outcome: str) -> None:
        self._observe(outcome, 1)
        try:
            self._learn(question.qname, told.addresses)
        finally:
            await self._write(told.message)

    def _forget(self, asked: Outstanding) -> None:
        self._outstanding.remove(asked)
        if asked.timer is not None:
            asked.timer.cancel()
        self._room.release()

    async def _write(self, message: bytes) -> None:
        self._client.write(framed(message))
        await self._client.drain()

    def _moved(self) -> None:
        self.active_at = self._clock()
        self._idle.reschedule(self._loop.time() + self._limits.tcp_idle_s)

    def _sock_reset(self) -> None:
        handle = self._client.get_extra_info("socket")
        if handle is not None and handle.fileno() >= 0:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


async def _streams(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _flush(writer: asyncio.StreamWriter) -> None:
    writer.close()
    async with asyncio.timeout(_FLUSH_S):
        await writer.wait_closed()
