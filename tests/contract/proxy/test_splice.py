"""A splice between real TCP sockets: every byte, every end, bounded memory."""

import array
import asyncio
import fcntl
import hashlib
import socket
import struct
import termios
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tidegate_proxy.interception.splice import CHUNK_BYTES, Spliced, splice

Until = Callable[[Callable[[], object]], Awaitable[None]]
MIB = 1024 * 1024


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@dataclass
class Line:
    """The two far ends of a running splice."""

    client: socket.socket
    origin: socket.socket
    ends: tuple[socket.socket, socket.socket]
    task: asyncio.Task[Spliced] = field(init=False)

    def __post_init__(self) -> None:
        scratch = memoryview(bytearray(CHUNK_BYTES))
        self.task = asyncio.create_task(splice(*self.ends, scratch=scratch))


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    client, near = tcp_pair()
    origin, far = tcp_pair()
    line = Line(client, origin, (near, far))
    yield line
    line.task.cancel()
    await asyncio.wait([line.task])
    client.close()
    origin.close()


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, count: int = 65536) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, count)


def hang_up(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_half_close_passes_and_the_other_way_goes_on(line: Line) -> None:
    """N6: a client may end its request with FIN and still wait for the answer."""
    await send(line.client, b"question")
    line.client.shutdown(socket.SHUT_WR)

    assert await receive(line.origin) == b"question"
    assert await receive(line.origin) == b""
    await send(line.origin, b"answer")
    assert await receive(line.client) == b"answer"
    line.origin.close()
    assert await receive(line.client) == b""
    assert await line.task == Spliced(to_origin_bytes=8, to_client_bytes=6, clean=True)
    assert [end.fileno() for end in line.ends] == [-1, -1]


async def test_a_reset_by_the_origin_is_a_reset_for_the_client(line: Line) -> None:
    """I2: a body that was cut short does not look like one that ended."""
    await send(line.origin, b"the beginning")
    assert await receive(line.client) == b"the beginning"
    hang_up(line.origin)

    with pytest.raises(ConnectionResetError):
        await receive(line.client)
    assert not (await line.task).clean


async def test_a_reset_by_the_client_is_a_reset_for_the_origin(line: Line) -> None:
    """N6: an upload that was given up does not look finished."""
    hang_up(line.client)

    with pytest.raises(ConnectionResetError):
        await receive(line.origin)
    assert not (await line.task).clean


async def test_a_cancelled_splice_resets_both(line: Line) -> None:
    """A stop that has waited long enough cuts, and leaves no descriptor behind."""
    await send(line.client, b"x")
    assert await receive(line.origin) == b"x"
    line.task.cancel()

    with pytest.raises(ConnectionResetError):
        await receive(line.client)
    with pytest.raises(ConnectionResetError):
        await receive(line.origin)
    assert [end.fileno() for end in line.ends] == [-1, -1]


async def test_the_dead_are_found_by_keep_alives(line: Line) -> None:
    """I8: an idle splice is never cut, one whose peer vanished ends all the same."""
    await send(line.client, b"x")
    assert await receive(line.origin) == b"x"

    assert [end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for end in line.ends] == [1, 1]


async def test_a_hundred_megabytes_each_way_at_once_arrive_whole_in_bounded_memory(
    line: Line, until: Until
) -> None:
    """N6, I8: a reader that is slower than its writer holds the writer up, not our memory."""
    block = bytes(range(251)) * 4200
    blocks = 100 * MIB // len(block)

    async def pour(sock: socket.socket) -> str:
        digest = hashlib.sha256()
        for number in range(blocks):
            data = number.to_bytes(8, "big") + block
            digest.update(data)
            await send(sock, data)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    async def drink(sock: socket.socket) -> str:
        digest = hashlib.sha256()
        glass = bytearray(65536)
        while count := await asyncio.get_running_loop().sock_recv_into(sock, glass):
            digest.update(memoryview(glass)[:count])
        return digest.hexdigest()

    tracemalloc.start()
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            sent_up, sent_down = tasks.create_task(pour(line.client)), tasks.create_task(pour(line.origin))
            await until(stalled(line))
            got_up, got_down = tasks.create_task(drink(line.origin)), tasks.create_task(drink(line.client))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert got_up.result() == sent_up.result()
    assert got_down.result() == sent_down.result()
    assert (await line.task).clean
    assert peak < 8 * MIB


def stalled(line: Line) -> Callable[[], bool]:
    """Both writers wait: what they sent fills the kernel's buffers and moves no more."""
    samples: list[tuple[int, ...]] = []

    def still() -> bool:
        samples.append(tuple(unread(sock) for sock in (*line.ends, line.client, line.origin)))
        return len(samples) > 25 and min(samples[-1]) > 0 and len(set(samples[-25:])) == 1

    return still


def unread(sock: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]
