"""The HTTP framing of intercepted connections, over real sockets on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from multidict import CIMultiDict

from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.http.addressing import BySite
from tidegate_proxy.http.crash_journal import CrashedTwice, CrashJournal, name_of
from tidegate_proxy.http.http_server import HttpServer
from tidegate_proxy.http.served import Moment, Served, Tally
from tidegate_proxy.interception.interceptor import Arrival
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Incoming, Kind
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site
from tidegate_proxy.storage.store import DigestMismatch
from tidegate_proxy.upstreams.upstream import UpstreamUnreachable

SITE = Site(registry="docker.io", host="registry-1.docker.io")
HOST = "Host: registry-1.docker.io\r\n"


async def pieces(*parts: bytes, then: Exception | None = None) -> AsyncIterator[bytes | memoryview]:
    for part in parts:
        yield part
    if then is not None:
        raise then


@dataclass
class ScriptedService:
    """Answers by path; remembers what came in and what was passed through."""

    answers: dict[str, Callable[[], Answer]] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    passed_through: list[str] = field(default_factory=list)
    ready: dict[str, ReadyAnswer] = field(default_factory=dict)

    async def answer(self, incoming: Incoming) -> Answer:
        if incoming.path.startswith("/unread"):
            return self.answers[incoming.path]()
        if incoming.body is not None:
            self.received[incoming.path] = b"".join([chunk async for chunk in incoming.body])
        return self.answers[incoming.path]()

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        if target.startswith("/broken"):
            raise RuntimeError("a bug")
        return self.ready.get(target)

    async def pass_through(self, incoming: Incoming) -> Answer:
        self.passed_through.append(incoming.target)
        if incoming.body is not None:
            self.received[incoming.path] = b"".join([chunk async for chunk in incoming.body])
        if incoming.path.startswith("/hopeless"):
            raise RuntimeError("a bug here too")
        return Answer(status=200, body=b"from the registry")


@dataclass
class World:
    service: ScriptedService
    tally: Tally
    told: list[Served]
    journal: CrashJournal
    http: HttpServer
    port: int

    @property
    def served(self) -> list[Served]:
        self.tally.tell()
        return self.told

    async def exchange(self, request: str, *, body: bytes = b"") -> bytes:
        """Send, and read to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request.encode() + body)
        async with asyncio.timeout(5):
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""
        writer.close()
        return answer

    async def get(self, path: str, *, method: str = "GET") -> bytes:
        return await self.exchange(f"{method} {path} HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    service, journal = ScriptedService(), CrashJournal(tmp_path)
    served: list[Served] = []

    def remember(moments: Sequence[Moment]) -> None:
        served.extend(each for each, _, _ in moments)

    def fail(_: Sequence[Moment]) -> None:
        raise RuntimeError("a bug of the metrics")

    tally = Tally([fail, remember])

    http = HttpServer(
        service=service,
        addressing=lambda _: BySite(SITE),
        tally=tally,
        probe_host="probe.tidegate.internal",
        journal=journal,
    )
    arrival = Arrival(
        sni="registry-1.docker.io",
        original=Endpoint.of("192.0.2.1", 443),
        peer=Endpoint.of("127.0.0.1", 1),
    )
    server = await asyncio.get_running_loop().create_server(lambda: http.protocol(arrival), "127.0.0.1", 0)
    yield World(service, tally, served, journal, http, server.sockets[0].getsockname()[1])
    server.close()
    await http.close()


async def test_an_answer_says_where_it_came_from(world: World) -> None:
    """O4: X-Tidegate-Cache and docker-registry-proxy's headers, and one `Served` a request."""
    world.service.answers["/v2/"] = lambda: Answer(
        status=200, body=b"{}", cache=Cache.HIT, kind=Kind.MANIFEST
    )
    answer = await world.get("/v2/")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"X-Tidegate-Cache: hit\r\n" in answer
    assert b"X-Docker-Registry-Proxy-Cache-Upstream-Status: HIT\r\n" in answer
    assert [(each.status, each.cache, each.sent_bytes) for each in world.served] == [(200, Cache.HIT, 2)]


async def test_a_head_promises_the_length_and_sends_nothing(world: World) -> None:
    """C9: Content-Length is the body's that a GET would have."""
    world.service.answers["/blob"] = lambda: Answer(
        status=200, headers=CIMultiDict({"Content-Length": "12345"})
    )
    head, _, body = (await world.get("/blob", method="HEAD")).partition(b"\r\n\r\n")

    assert b"Content-Length: 12345" in head
    assert body == b""


@pytest.mark.parametrize("host", ["quay.io", "registry-1.docker.io:444", ""])
async def test_a_host_header_that_differs_from_the_sni_is_misdirected(world: World, host: str) -> None:
    """N6: 421, RFC 9110 15.5.20."""
    answer = await world.exchange(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("host", ["REGISTRY-1.docker.io", "registry-1.docker.io:443"])
async def test_a_host_header_may_differ_in_case_and_name_the_port(world: World, host: str) -> None:
    """N6: host names have no case, and the port is the one that was dialled."""
    world.service.answers["/v2/"] = lambda: Answer(status=200, body=b"{}")
    answer = await world.exchange(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("length", ["20", None])
async def test_a_body_that_breaks_is_cut_and_never_finished(world: World, length: str | None) -> None:
    """I2: neither the promised length nor the last chunk arrives."""
    headers = CIMultiDict({"Content-Length": length} if length else {})
    world.service.answers["/blob"] = lambda: Answer(
        status=200, headers=headers, body=pieces(b"0123456789", b"9876543210", then=OSError("cut"))
    )
    answer = await world.get("/blob")

    _, _, body = answer.partition(b"\r\n\r\n")
    if length is None:
        assert not body.endswith(b"0\r\n\r\n")
    assert str(world.served[0].cause) == "cut"


async def test_a_wrong_blob_is_not_passed_through_instead(world: World) -> None:
    """I2: the registry would send the same wrong bytes again."""
    world.service.answers["/blob"] = lambda: Answer(
        status=200, body=pieces(then=DigestMismatch(Digest.of(b"right")))
    )
    answer = await world.get("/blob")

    assert not answer.startswith(b"HTTP/1.1 200 ")
    assert world.service.passed_through == []


async def test_a_bug_before_the_first_byte_becomes_a_pass_through(world: World) -> None:
    """I1: whether deciding fails or the first piece of the body does."""

    def fails() -> Answer:
        raise RuntimeError("a bug")

    world.service.answers["/deciding"] = fails
    world.service.answers["/first"] = lambda: Answer(status=200, body=pieces(then=RuntimeError("a bug")))
    for path in ("/deciding", "/first"):
        assert (await world.get(path)).endswith(b"from the registry")

    assert world.service.passed_through == ["/deciding", "/first"]


def fails() -> Answer:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "made",
    [
        lambda: Answer(status=200, headers=CIMultiDict({"Content-Type": "a\r\nb"}), body=b"whole"),
        lambda: Answer(
            status=200, headers=CIMultiDict({"Content-Type": "a\r\nb"}), body=pieces(b"in", b"parts")
        ),
        lambda: Answer(
            status=200, headers=CIMultiDict({"Content-Length": "many"}), body=pieces(b"in", b"parts")
        ),
    ],
    ids=["bytes", "chunked", "length"],
)
async def test_an_answer_whose_head_cannot_be_written_becomes_a_pass_through(
    world: World, made: Callable[[], Answer]
) -> None:
    """I1: nothing of it has gone out, so nothing of it shows; the framing is the new answer's."""
    world.service.answers["/head"] = made
    head, _, body = (await world.get("/head")).partition(b"\r\n\r\n")

    assert body == b"from the registry"
    assert b"Content-Length: 17" in head
    assert b"Transfer-Encoding" not in head
    assert world.served[0].cause is not None


async def test_an_upload_that_nobody_has_read_yet_survives_a_bug(world: World) -> None:
    """I1, C18: it is passed through whole; one that was read cannot be sent again, and says so."""
    world.service.answers["/unread"] = world.service.answers["/read"] = fails
    head = f"HTTP/1.1\r\n{HOST}Connection: close\r\nContent-Length: 5\r\n\r\n"
    unread = await world.exchange(f"PUT /unread {head}", body=b"12345")
    read = await world.exchange(f"PUT /read {head}", body=b"12345")

    assert unread.endswith(b"from the registry")
    assert world.service.received["/unread"] == b"12345"
    assert read.startswith(b"HTTP/1.1 500 ")
    assert world.service.passed_through == ["/unread"]


async def test_a_bug_in_the_pass_through_itself_is_an_answer_too(world: World) -> None:
    """I1: in the specification's words, and reported once."""
    world.service.answers["/hopeless"] = fails
    answer = await world.get("/hopeless")

    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"UNAVAILABLE" in answer
    assert [str(each.cause) for each in world.served] == ["a bug here too"]


async def test_a_bug_in_what_is_at_hand_goes_to_the_full_server(world: World) -> None:
    """I1: the same connection goes on, and the answer is the full server's."""
    world.service.answers["/broken"] = lambda: Answer(status=200, body=b"full")

    assert (await world.get("/broken")).endswith(b"full")


async def test_what_one_cannot_count_is_answered_and_counted_by_the_others(world: World) -> None:
    """I1: at hand or not; one observer fails each time in every test here."""
    world.service.ready["/at-hand"] = ready(b"at hand")
    world.service.answers["/full"] = lambda: Answer(status=200, body=b"full")

    assert (await world.get("/at-hand")).endswith(b"at hand")
    assert (await world.get("/full")).endswith(b"full")
    assert [served.path for served in world.served] == ["/at-hand", "/full"]


async def test_a_request_that_we_died_of_twice_is_passed_through_and_its_like_are_not(
    world: World, tmp_path: Path
) -> None:
    """I1: by method, host and path, at hand or not; nothing of ours decides about it."""
    for _ in range(2):
        before = CrashJournal(tmp_path)
        before.open()
        before.enter(name_of("GET", SITE.host, "/fatal"))
    world.journal.open()
    for path in ("/fatal", "/fatal?n=1", "/harmless"):
        world.service.ready[path] = ready(b"at hand")
        world.service.answers[path] = fails

    assert (await world.get("/fatal?n=1")).endswith(b"from the registry")
    assert (await world.get("/fatal", method="HEAD")).startswith(b"HTTP/1.1 200 ")
    assert (await world.get("/harmless")).endswith(b"at hand")
    assert world.service.passed_through == ["/fatal?n=1"]
    assert [type(each.cause) for each in world.served] == [CrashedTwice, type(None), type(None)]


async def test_requests_are_in_the_journal_while_they_are_handled_and_no_longer(
    world: World, tmp_path: Path
) -> None:
    """I1: to the last byte of the answer, whatever becomes of it."""
    world.journal.open()
    in_flight: list[int] = []

    def look() -> None:
        table = (tmp_path / "in-flight").read_bytes()
        in_flight.append(sum(table[slot] > 0 for slot in range(0, len(table), 256)))

    async def looking() -> AsyncIterator[bytes | memoryview]:
        yield b"one"
        look()
        yield b"two"

    world.service.answers["/blob"] = lambda: Answer(status=200, body=looking())
    world.service.answers["/cut"] = lambda: Answer(status=200, body=pieces(b"1", b"2", then=OSError("cut")))
    world.service.ready["/at-hand"] = ready(b"at hand")
    for path in ("/blob", "/cut", "/at-hand", "/broken/and/unknown"):
        await world.get(path)
        look()

    assert in_flight == [1, 0, 0, 0, 0]


async def test_idle_connections_are_closed_and_those_at_work_end_with_their_answer(world: World) -> None:
    """N18: when the agent stops, and when it is paused."""
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes | memoryview]:
        yield b"slow"
        await go_on.wait()
        yield b"ly"

    world.service.answers["/slow"] = lambda: Answer(
        status=200, headers=CIMultiDict({"Content-Length": "6"}), body=slow()
    )
    world.service.answers["/full"] = lambda: Answer(status=200, body=b"full")
    world.service.ready["/at-hand"] = ready(b"hand")
    readers, writers = {}, []
    async with asyncio.timeout(5):
        for path in ("/slow", "/full", "/at-hand"):
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(f"GET {path} HTTP/1.1\r\n{HOST}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(4)
            readers[path] = reader
            writers.append(writer)
        world.http.stop_keeping_alive()

        assert await readers["/full"].read() == b""
        assert await readers["/at-hand"].read() == b""
        go_on.set()
        assert await readers["/slow"].read() == b"ly"
    for writer in writers:
        writer.close()


async def test_an_unreachable_registry_is_an_error_that_clients_understand(world: World) -> None:
    """C7: the specification's error body."""

    def fails() -> Answer:
        raise UpstreamUnreachable(SITE, "refused")

    world.service.answers["/v2/"] = fails
    answer = await world.get("/v2/")

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b'"code": "UNAVAILABLE"' in answer


async def test_an_upload_reaches_the_service_as_it_was_sent(world: World) -> None:
    """C18: body, length and content coding untouched; `Expect: 100-continue` is answered."""
    body = b"\x1f\x8b" + bytes(300_000)
    world.service.answers["/v2/x/blobs/uploads/1"] = lambda: Answer(status=202)
    answer = await world.exchange(
        f"PATCH /v2/x/blobs/uploads/1 HTTP/1.1\r\n{HOST}Connection: close\r\nContent-Encoding: gzip\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n",
        body=body,
    )

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 ")
    assert world.service.received["/v2/x/blobs/uploads/1"] == body
    assert world.served[0].received_bytes == len(body)


async def test_one_connection_carries_several_requests(world: World) -> None:
    """C1: containerd keeps its connections."""
    world.service.answers["/v2/"] = lambda: Answer(status=200, body=b"{}")
    request = f"GET /v2/ HTTP/1.1\r\n{HOST}\r\n"
    last = f"GET /v2/ HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
    answer = await world.exchange(2 * request + last)

    assert answer.count(b"HTTP/1.1 200 ") == 3


def ready(body: bytes) -> ReadyAnswer:
    headers = CIMultiDict({"Content-Type": "text/x", "Content-Length": str(len(body))})
    answer = Answer(status=200, headers=headers, body=body, cache=Cache.HIT, kind=Kind.MANIFEST)
    return ReadyAnswer(answer=answer, body=body)


async def test_what_is_at_hand_is_answered_as_the_full_server_would(world: World) -> None:
    """C4: the same status, fields and body, whichever of the two answers."""
    made = ready(b"a manifest")
    world.service.ready["/at-hand"] = made
    world.service.answers["/full"] = lambda: made.answer
    for method in ("GET", "HEAD"):
        at_hand, full = await world.get("/at-hand", method=method), await world.get("/full", method=method)

        def fields(answer: bytes) -> tuple[set[bytes], bytes]:
            head, _, body = answer.partition(b"\r\n\r\n")
            lines = {line for line in head.split(b"\r\n") if not line.startswith((b"Date", b"Server"))}
            return {line.lower() for line in lines}, body

        assert fields(at_hand) == fields(full)
    assert [served.path for served in world.served] == ["/at-hand", "/full"] * 2
    assert [served.sent_bytes for served in world.served[::2]] == [10, 0]


async def test_one_connection_is_handed_over_and_keeps_going(world: World) -> None:
    """C1: at hand, then not, then at hand again, in one connection and pipelined."""
    world.service.ready["/at-hand"] = ready(b"ready")
    world.service.answers["/full"] = lambda: Answer(status=200, body=b"full")
    world.service.answers["/at-hand"] = lambda: Answer(status=200, body=b"again")
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    async with asyncio.timeout(5):
        for path, body in (("/at-hand", b"ready"), ("/full", b"full"), ("/at-hand", b"again")):
            writer.write(f"GET {path} HTTP/1.1\r\n{HOST}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
    writer.close()


@pytest.mark.parametrize("host", ["quay.io", "registry-1.docker.io:444"])
async def test_what_is_at_hand_is_not_for_another_host(world: World, host: str) -> None:
    """N6: 421 here too."""
    world.service.ready["/at-hand"] = ready(b"ready")
    answer = await world.exchange(f"GET /at-hand HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421 ")
