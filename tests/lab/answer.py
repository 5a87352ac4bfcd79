"""Send one HTTP answer from the front, healthy or as a fault wants it. Runs inside the front's process."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from aiohttp import web
from multidict import CIMultiDict

from .fault import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, headers and body of an answer; `size` is the body's length when it is known."""

    status: int
    headers: CIMultiDict[str]
    size: int | None = 0
    chunks: AsyncGenerator[bytes, None] | None = None


class UncheckedResponse(web.StreamResponse):
    """A response whose body may be shorter or longer than its Content-Length claims."""

    _length_check = False


async def send(request: web.BaseRequest, answer: Answer, fault: Fault) -> tuple[web.StreamResponse, int]:
    """Send the answer as the fault wants it; the response object and the number of body bytes given away."""
    if fault.gzip and answer.status == 200 and answer.chunks is not None:
        answer = _gzipped(answer, answer.chunks)
    headers = CIMultiDict(answer.headers)
    size = answer.size
    claimed = size
    if fault.content_length is not None:
        claimed = fault.content_length
    elif size is not None:
        claimed = size + fault.content_length_off_by
    lying = claimed != size
    response = UncheckedResponse(status=answer.status) if lying else web.StreamResponse(status=answer.status)
    headers.pop("Content-Length", None)
    if (fault.chunked or size is None) and request.method != "HEAD":
        response.enable_chunked_encoding()
    elif claimed is not None and answer.status not in (204, 304):
        headers["Content-Length"] = str(claimed)
    headers.update(fault.headers)
    response.headers.extend(headers)
    if lying:
        response.force_close()
    await response.prepare(request)
    sent = 0
    if answer.chunks is not None and request.method != "HEAD":
        async with aclosing(answer.chunks) as chunks:
            sent, cut = await _send_body(response, chunks, size, fault)
        if cut:
            await _end_connection(request, fault)
            return response, sent
    await response.write_eof()
    if lying and request.transport is not None:
        request.transport.close()
    return response, sent


async def hang_up(request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
    """Close the connection without an answer."""
    await _end_connection(request, fault)
    return web.Response(status=500)  # aiohttp wants one; the connection is closed, nobody gets it


async def _send_body(
    response: web.StreamResponse,
    chunks: AsyncGenerator[bytes, None],
    size: int | None,
    fault: Fault,
) -> tuple[int, bool]:
    cut_at = _from_start(fault.cut_at, size)
    stall_at = _from_start(fault.stall_at, size)
    places = {"first": 0, "middle": (size or 0) // 2, "last": -1}
    corrupt_at = _from_start(
        places.get(fault.corrupt) if isinstance(fault.corrupt, str) else fault.corrupt, size
    )
    stops = [stop for stop in (cut_at, stall_at) if stop is not None]
    sent = 0
    owed_s = 0.0  # paid before the next piece: a client that has the last one may leave at once
    stalled = False
    async for chunk in chunks:
        if corrupt_at is not None and sent <= corrupt_at < sent + len(chunk):
            damaged = bytearray(chunk)
            damaged[corrupt_at - sent] ^= 0xFF
            chunk = bytes(damaged)  # noqa: PLW2901 (the damaged chunk takes the place of the good one)
        for piece in _pieces(chunk, sent, stops, fault.bytes_per_s):
            if sent == stall_at and not stalled:
                stalled = True
                await asyncio.sleep(fault.stall_s)
            if sent == cut_at:
                return sent, True
            if owed_s:
                await asyncio.sleep(owed_s)
            await response.write(piece)
            sent += len(piece)
            if fault.bytes_per_s:
                owed_s = len(piece) / fault.bytes_per_s
    return sent, sent == cut_at


def _from_start(place: int | None, size: int | None) -> int | None:
    return place if place is None or place >= 0 else (size or 0) + place


def _pieces(chunk: bytes, sent: int, stops: list[int], bytes_per_s: int | None) -> Iterator[bytes]:
    """Cut a chunk so that no piece crosses a stop, and, when throttled, that none takes more than 50 ms."""
    most = max(1, bytes_per_s // 20) if bytes_per_s else len(chunk)
    at = 0
    while at < len(chunk):
        end = min([at + most, len(chunk), *(stop - sent for stop in stops if stop - sent > at)])
        yield chunk[at:end]
        at = end


async def _end_connection(request: web.BaseRequest, fault: Fault) -> None:
    transport = request.transport
    if transport is None:
        return
    if fault.cut == "close":
        transport.close()  # what was written is still sent, then close_notify and FIN
        return
    raw: socket.socket = transport.get_extra_info("socket")
    if fault.cut == "unannounced":
        while not transport.is_closing() and (transport.get_write_buffer_size() or _unsent(raw)):
            await asyncio.sleep(0.002)
        raw.shutdown(socket.SHUT_WR)
        transport.abort()
        return
    while not transport.is_closing() and (transport.get_write_buffer_size() or _unsent(raw)):
        await asyncio.sleep(0.002)
    # With a linger time of 0 the kernel answers close() with RST (socket(7)).
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _gzipped(answer: Answer, chunks: AsyncGenerator[bytes, None]) -> Answer:
    """The same answer as a web server gives it that compresses what it can."""

    async def coded() -> AsyncGenerator[bytes, None]:
        deflating = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield deflating.compress(chunk)
        yield deflating.flush()

    headers = CIMultiDict(answer.headers)
    headers["Content-Encoding"] = "gzip"
    headers.popall("Accept-Ranges", None)
    return replace(answer, headers=headers, size=None, chunks=coded())


def _unsent(raw: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])
