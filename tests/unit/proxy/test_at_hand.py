"""Answers at hand: what is remembered of a request never changes what it gets, or what is counted."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tidegate_proxy.http.addressing import BySite
from tidegate_proxy.http.at_hand import AtHand
from tidegate_proxy.http.crash_journal import CrashJournal, name_of
from tidegate_proxy.http.served import Moment, Tally
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer, Cache, Kind
from tidegate_proxy.registry.hot_manifests import HotManifests, ReadyAnswer
from tidegate_proxy.site import Site

SITES = (
    Site(registry="docker.io", host="registry-1.docker.io"),
    Site(registry="lab", host="registry-1.docker.io", port=5000),
    Site(registry="quay.io", host="quay.io"),
)


class Shelf:
    """Manifests that are put, taken away and hidden; holds two of them."""

    def __init__(self) -> None:
        self._manifests = HotManifests(limit_bytes=60)
        self.hidden: set[str] = set()
        self.look: Callable[[], None] = lambda: None

    def put(self, number: int, media_type: str = "a/b", *, alone: bool = False) -> None:
        if alone:
            self._manifests = HotManifests(limit_bytes=60)
        body = f"{number}: a manifest of {media_type}".encode()
        headers = CIMultiDict({"Content-Type": media_type, "Content-Length": str(len(body))})
        answer = Answer(status=200, headers=headers, body=body, cache=Cache.HIT, kind=Kind.MANIFEST)
        self._manifests.put(Digest.of(b"%d" % number), answer, body)

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        self.look()
        if site.registry in self.hidden:
            return None
        return self._manifests.get(Digest.of(target.removeprefix("/").encode()))


class Desk:
    """Answers, and what was counted."""

    def __init__(self, shelf: Shelf, journal: CrashJournal, *, limit_bytes: int = 1 << 20) -> None:
        self.moments: list[Moment] = []
        self._tally = Tally([self.moments.extend])
        self.at_hand = AtHand(service=shelf, journal=journal, tally=self._tally, limit_bytes=limit_bytes)

    def ask(self, site: Site, head: bytes) -> tuple[list[bytes], bool] | None:
        """The lines of the answer but its Date, and whether the connection ends."""
        answer = self.at_hand.answer(BySite(site), head)
        if answer is None:
            return None
        return [line for line in answer[0].split(b"\r\n") if not line.startswith(b"Date: ")], answer[1]

    def counted(self) -> list[tuple[object, ...]]:
        self._tally.tell()
        return [
            (one.site, one.method, one.path, one.status, one.cache, one.kind, one.sent_bytes, one.cause)
            for one, _, _ in self.moments
        ]


def head(target: str, *fields: str, method: str = "GET", host: str = SITES[0].host) -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", "")).encode()


@pytest.fixture
def journal(tmp_path: Path) -> CrashJournal:
    opened = CrashJournal(tmp_path)
    opened.open()
    return opened


HEADS = st.builds(
    lambda number, form: head(f"/{number}", *form[1], method=form[0], host=form[2]),
    st.integers(0, 1),
    st.sampled_from(
        [
            ("GET", (), SITES[0].host),
            ("GET", ("Accept: a/b",), SITES[0].host),
            ("GET", ("Authorization: Bearer x",), SITES[0].host),
            ("HEAD", ("Connection: close",), SITES[0].host),
            ("GET", (), SITES[2].host),
            ("PUT", (), SITES[0].host),
        ]
    ),
)
EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(SITES), HEADS),
    st.tuples(st.just("ask"), st.sampled_from(SITES[:2]), st.just(head("/0"))),
    st.tuples(st.sampled_from(["put", "replace"]), st.integers(0, 2), st.sampled_from(["a/b", "c/longer"])),
    st.tuples(st.sampled_from(["hide", "show"]), st.sampled_from(["docker.io", "quay.io"]), st.none()),
)


@given(st.lists(EVENTS, min_size=1, max_size=40), st.sampled_from([0, 3000, 1 << 20]))
@example([("ask", SITES[0], head("/0")), ("replace", 0, "c/longer"), ("ask", SITES[0], head("/0"))], 1 << 20)
async def test_whatever_happens_in_between_a_repeated_request_gets_what_a_new_one_gets(
    events: Sequence[tuple[str, object, object]], limit_bytes: int
) -> None:
    """C4, I6: the same bytes and the same counts, also when manifests go and repositories turn private."""
    shelf, unopened = Shelf(), CrashJournal(Path("/nonexistent"))
    shelf.put(0)
    warm = Desk(shelf, unopened, limit_bytes=limit_bytes)
    counted = []
    for event in events:
        match event:
            case "ask", Site() as site, bytes() as request:
                cold = Desk(shelf, unopened)

                assert warm.ask(site, request) == cold.ask(site, request)
                counted += cold.counted()
            case str(how), int(number), str(media_type):
                shelf.put(number, media_type, alone=how == "replace")
            case "hide", str(registry), _:
                shelf.hidden.add(registry)
            case _, str(registry), _:
                shelf.hidden.discard(registry)

    assert warm.counted() == counted


async def test_requests_are_remembered_within_a_bound(journal: CrashJournal) -> None:
    """I8: by what they hold, the long ones too."""
    shelf = Shelf()
    shelf.put(1)
    desk = Desk(shelf, journal, limit_bytes=20_000)
    for number in range(100):
        assert desk.ask(SITES[0], head("/1", f"User-Agent: {number}")) is not None
    short = len(desk.at_hand)
    for number in range(100):
        assert desk.ask(SITES[0], head("/1", f"User-Agent: {number}{'x' * 900}")) is not None

    assert 10 <= short < 20
    assert 1 <= len(desk.at_hand) < 6


@pytest.mark.parametrize(
    "request_head",
    [
        head("/1", "Authorization: Bearer x"),
        head("/1", "Cookie: x"),
        head("/1", "X-Anything: x"),
        head("/2"),
        head("/1", host="quay.io"),
    ],
)
async def test_credentials_and_what_has_no_answer_are_not_remembered(
    journal: CrashJournal, request_head: bytes
) -> None:
    """I6, I8: a field that is not known may hold a credential."""
    shelf = Shelf()
    shelf.put(1)
    desk = Desk(shelf, journal)
    desk.ask(SITES[0], request_head)

    assert len(desk.at_hand) == 0


async def test_a_repeated_request_is_in_the_journal_while_it_is_handled(
    journal: CrashJournal, tmp_path: Path
) -> None:
    """I1."""
    shelf, named = Shelf(), list[bytes]()
    shelf.put(1)
    shelf.look = lambda: named.append((tmp_path / "in-flight").read_bytes().rstrip(b"\0"))
    desk = Desk(shelf, journal)
    for _ in range(3):
        desk.ask(SITES[0], head("/1"))

    name = name_of("GET", SITES[0].host, "/1")
    assert named == [bytes((len(name),)) + name] * 3
    assert journal_is_empty(tmp_path)


async def test_a_repeated_request_that_we_died_of_twice_is_left_alone(
    journal: CrashJournal, tmp_path: Path
) -> None:
    """I1: remembered or not."""
    shelf = Shelf()
    shelf.put(1)
    desk = Desk(shelf, journal)
    assert desk.ask(SITES[0], head("/1")) is not None
    for _ in range(2):
        journal.enter(name_of("GET", SITES[0].host, "/1"))
        journal.open()

    assert desk.ask(SITES[0], head("/1")) is None


def journal_is_empty(directory: Path) -> bool:
    table = (directory / "in-flight").read_bytes()
    return not any(table[slot] for slot in range(0, len(table), 256))
