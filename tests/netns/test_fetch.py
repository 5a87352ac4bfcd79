"""One fetch for all who wait, healed, resumed and in ranges: real registries, real clients, real deaths."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial

import pytest

from lab import Agent, Fault, Lab, Node, Recipe, Redirects, Registry, Request, ask, until

ORIGIN = "https://registry-1.docker.io"
PARTIAL = "/var/lib/tidegate/partial"
MIB = 1 << 20
LAYER = Recipe(name="fetched", layers=(20 * MIB,), with_busybox=False)
REPOSITORY = "library/fetched"
REFERENCE = f"docker.io/{REPOSITORY}:1"


@pytest.fixture
def agent(node: Node) -> Agent:
    node.install_trust()
    return node.start_agent().wait_steering()


class Layer:
    """The 20 MiB layer that scenarios here are about, and what the registry was asked for of it."""

    def __init__(self, lab: Lab, registry: Registry, recipe: Recipe = LAYER, repository: str = REPOSITORY):
        self.image = registry.publish(recipe, repository)
        self.digest = self.image.largest_layer
        self.encoded = self.digest.removeprefix("sha256:")
        self.size = self.image.sizes[self.digest]
        self.url = f"{ORIGIN}/v2/{repository}/blobs/{self.digest}"
        self._registry = registry
        self._file = lab.internet.path(
            f"{registry.plan.storage}/docker/registry/v2/blobs/sha256/{self.encoded[:2]}/{self.encoded}/data"
        )

    @property
    def content(self) -> bytes:
        return self._file.read_bytes()

    @property
    def reads(self) -> list[Request]:
        return [each for each in self._registry.requests_for("bytes") if self.encoded in each.path]

    @property
    def sent_bytes(self) -> int:
        """Of this layer, by the registry; a request under way counts nothing yet."""
        return sum(request.sent_bytes or 0 for request in self.reads)

    def fault(self, fault: Fault) -> None:
        self._registry.fault(fault)


@pytest.fixture
def layer(lab: Lab, registry: Registry) -> Layer:
    return Layer(lab, registry)


def partial_bytes(node: Node, layer: Layer) -> int:
    """How far the record says that the layer has come."""
    try:
        lines = node.path(f"{PARTIAL}/{layer.encoded}.extents").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max((int(line.split()[1]) for line in lines if line.startswith("prefix")), default=0)


def has(node: Node, layer: Layer) -> bool:
    return node.path(f"/var/lib/tidegate/blobs/sha256/{layer.encoded[:2]}/{layer.encoded}").exists()


def healed(agent: Agent) -> dict[str, float]:
    """What the agent got over, by cause; every cause it knows is there."""
    name = "tidegate_healed_total{"
    totals = {key: value for key, value in agent.metrics().items() if key.startswith(name)}
    return {key.removeprefix(f'{name}cause="').removesuffix('"}'): value for key, value in totals.items()}


# Healing


@pytest.mark.parametrize(("cut", "permille"), [("reset", 10), ("reset", 500), ("reset", 999), ("close", 500)])
def test_a_connection_that_breaks_in_a_layer_is_resumed_where_it_broke(
    node: Node, agent: Agent, layer: Layer, cut: str, permille: int
) -> None:
    """C12: at 1 %, 50 % and 99.9 %; skopeo, which never resumes, notices nothing, and no byte comes twice."""
    at = layer.size * permille // 1000
    layer.fault(Fault(on="bytes", matching=layer.encoded, cut_at=at, cut=cut))  # type: ignore[arg-type]
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    first, second = layer.reads
    assert first.header("Range") == []
    (resumed,) = second.header("Range")
    assert 0 < int(resumed.removeprefix("bytes=").removesuffix("-")) <= at
    assert second.header("If-Range") == []
    causes = healed(agent)
    assert causes["reset"] + causes["truncated"] == 1
    assert set(causes) == {"reset", "truncated", "stalled", "refused", "unreachable", "size", "restart"}


def test_a_redirect_that_expired_in_the_middle_is_asked_for_anew(
    node: Node, agent: Agent, layer: Layer, registry: Registry
) -> None:
    """C12, C8: the signed URL is good for nothing any more; 403 and 5xx on the way are not the end."""
    registry.redirect_blobs(Redirects(signature_lifetime_s=1))
    at = 9 * MIB
    layer.fault(Fault(on="bytes", matching=layer.encoded, stall_at=at, stall_s=2.1, cut_at=at))
    layer.fault(Fault(on="bytes", matching=layer.encoded, status=403, body="Request has expired"))
    layer.fault(Fault(on="bytes", matching=layer.encoded, status=503))
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    first, *others = layer.reads
    assert [request.status for request in others] == [403, 503, 206]
    assert all(request.query != first.query for request in others)
    assert sum(healed(agent).values()) == 1


def test_an_origin_that_answers_a_range_with_the_whole_is_skipped_to_the_place(
    node: Node, agent: Agent, layer: Layer
) -> None:
    """C12: 200 to a Range request, as from a proxy that does not know ranges."""
    layer.fault(Fault(on="bytes", matching=layer.encoded, cut_at=9 * MIB))
    layer.fault(Fault(on="bytes", matching=layer.encoded, ignore_range=True, times=None))
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    assert [request.status for request in layer.reads] == [200, 200]


@pytest.mark.slow  # it waits until the agent has had enough of the silence
def test_a_stalled_layer_is_resumed(node: Node, agent: Agent, layer: Layer) -> None:
    """C12: the origin sends half and then nothing, on a connection that stays open."""
    layer.fault(Fault(on="bytes", matching=layer.encoded, stall_at=10 * MIB))
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    assert healed(agent)["stalled"] == 1
    (_, second) = layer.reads
    assert second.header("Range") == [f"bytes={10 * MIB}-"]


# Restart


def killed_in_the_middle(node: Node, agent: Agent, layer: Layer, at: int = 15 * MIB) -> None:
    """SIGKILL agent and supervisor while `at` bytes of the layer have come and no more do."""
    layer.fault(Fault(on="bytes", matching=layer.encoded, stall_at=at))
    pulling = node.start_pull("skopeo", REFERENCE)
    until(lambda: partial_bytes(node, layer) >= at - MIB, "most of the bytes are on the disk")
    agent.supervisor.kill()
    agent.kill()
    pulling.wait()


def test_after_sigkill_the_next_pull_fetches_only_what_is_missing(
    node: Node, agent: Agent, layer: Layer, registry: Registry
) -> None:
    """C13: the registry sends the rest of the layer, not the layer."""
    killed_in_the_middle(node, agent, layer)
    there = partial_bytes(node, layer)
    registry.heal()
    registry.forget()
    again = node.start_agent().wait_steering()
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    assert [request.header("Range") for request in layer.reads] == [[f"bytes={there}-"]]
    assert layer.sent_bytes == layer.size - there
    assert healed(again)["restart"] == 1
    until(lambda: has(node, layer), "the layer is stored")
    assert not list(node.path(PARTIAL).iterdir())


def test_a_corrupted_prefix_is_thrown_away_after_sigkill(
    node: Node, agent: Agent, layer: Layer, registry: Registry
) -> None:
    """C13, I2: a bit flips on the disk between two lives; the pull succeeds, and what was right is kept."""
    killed_in_the_middle(node, agent, layer)
    path = node.path(f"{PARTIAL}/{layer.encoded}")
    with path.open("r+b") as file:
        file.seek(8 * MIB)
        byte = file.read(1)[0]
        file.seek(8 * MIB)
        file.write(bytes([byte ^ 1]))
    registry.heal()
    registry.forget()
    node.start_agent().wait_steering()
    pull = node.pull("skopeo", REFERENCE)

    assert pull.contents == layer.image.contents, pull.stderr
    until(lambda: has(node, layer), "the layer is stored")
    stored = node.path(f"/var/lib/tidegate/blobs/sha256/{layer.encoded[:2]}/{layer.encoded}")
    assert stored.read_bytes() == layer.content
    firsts = [int(each.header("Range")[0].removeprefix("bytes=").partition("-")[0]) for each in layer.reads]
    # What is noted with the wrong byte goes with it: a piece, of up to three mebibytes and a half.
    assert 4 * MIB <= min(firsts) <= 8 * MIB
    assert layer.sent_bytes < layer.size - 3 * MIB


def test_what_was_left_is_served_to_a_client_that_resumes(
    node: Node, agent: Agent, layer: Layer, registry: Registry
) -> None:
    """C10, C13: containerd comes back with `bytes=N-` and gets the rest, from disk and registry."""
    killed_in_the_middle(node, agent, layer)
    registry.heal()
    registry.forget()
    node.start_agent().wait_steering()
    answer = ask(node, layer.url, "--range", f"{5 * MIB}-")

    assert answer.status == 206
    assert answer.header("Content-Range") == f"bytes {5 * MIB}-{layer.size - 1}/{layer.size}"
    assert answer.body == layer.content[5 * MIB :]
    assert layer.sent_bytes < layer.size - 13 * MIB


# Ranges


@pytest.fixture
def cold(lab: Lab, registry: Registry) -> Iterator[Layer]:
    """A blob of 100 MB."""
    yield Layer(lab, registry, Recipe(name="cold", layers=(100_000_000,), with_busybox=False), "library/cold")


LAZY = """
import http.client, json, ssl, sys

host, path, ranges = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
connection = http.client.HTTPSConnection(host, context=ssl.create_default_context(), timeout=20)
for wanted in ranges:
    connection.request("GET", path, headers={"Range": f"bytes={wanted}"})
    answer = connection.getresponse()
    body = answer.read()
    print(json.dumps([answer.status, answer.headers["Content-Range"], body.hex()]))
"""


def test_a_footer_then_small_ranges_by_two_readers_then_the_rest_each_byte_once(
    node: Node, agent: Agent, cold: Layer, registry: Registry
) -> None:
    """C10, I2: what lazy snapshotters do to one cold blob costs little at first, and no byte twice."""
    dice = random.Random(7)
    places = dice.sample(range(cold.size - 20_000), 50)
    wanted = ["-65536", *(f"{at}-{at + 19_999}" for at in places)]
    host, path = ORIGIN.removeprefix("https://"), cold.url.removeprefix(ORIGIN)
    readers = [
        node.spawn(["python3", "-c", LAZY, host, path, json.dumps(each)])
        for each in (wanted, [wanted[0], *reversed(wanted[1:])])
    ]
    for reader in readers:
        assert reader.wait(60) == 0, reader.log
    at_first = cold.sent_bytes

    content = cold.content
    for reader in readers:
        answers = [json.loads(line) for line in reader.log.splitlines()]
        assert len(answers) == len(wanted)
        for status, content_range, body in answers:
            assert status == 206
            span, _, size = content_range.removeprefix("bytes ").partition("/")
            first, last = map(int, span.split("-"))
            assert int(size) == cold.size
            assert bytes.fromhex(body) == content[first : last + 1]
        reader.close()
    assert at_first <= 65_536 + 50 * 20_000
    until(lambda: has(node, cold), "the rest was fetched and verified", within_s=60)
    assert cold.sent_bytes == cold.size
    assert ask(node, cold.url, "--range", "-10").cache == "hit"


RANGES: tuple[tuple[str, int, tuple[int, int | None] | None], ...] = (
    ("bytes=0-9", 206, (0, 10)),
    ("bytes=-10", 206, (-10, None)),
    ("bytes=1000-", 206, (1000, None)),
    ("bytes=0-9,20-29", 200, (0, None)),
    ("bytes=9-0", 200, (0, None)),
    ("lines=0-9", 200, (0, None)),
    ("bytes=99999999-", 416, None),
    ("bytes=-0", 416, None),
)


def test_ranges_are_answered_as_rfc_9110_has_them_cold_and_warm(
    lab: Lab, node: Node, agent: Agent, registry: Registry
) -> None:
    """C10: the same answer from the registry through us, and from the cache; If-Range and HEAD too."""
    for number, (header, status, span) in enumerate(RANGES):
        recipe = Recipe(name=f"ranged{number}", layers=(70_000,), with_busybox=False)
        blob = Layer(lab, registry, recipe, f"library/ranged{number}")
        check_range(node, blob, header, status, span, "miss")
        ask(node, blob.url)
        until(partial(has, node, blob), "the blob is stored")
        check_range(node, blob, header, status, span, "hit")


def check_range(
    node: Node, blob: Layer, header: str, status: int, span: tuple[int, int | None] | None, cache: str
) -> None:
    asked = ["--header", f"Range: {header}"]
    answer = ask(node, blob.url, *asked)
    assert (answer.status, answer.cache) == (status, cache), header
    if span is None:
        assert answer.header("Content-Range") == f"bytes */{blob.size}"
        return
    content = blob.content
    expected = content[slice(*span)]
    assert answer.body == expected
    if status == 206:
        first = content.index(expected)
        last = first + len(expected) - 1
        assert answer.header("Content-Range") == f"bytes {first}-{last}/{blob.size}"
    matching = ask(node, blob.url, *asked, "--header", f'If-Range: "{blob.digest}"')
    assert (matching.status, matching.body) == (status, expected)
    other = ask(node, blob.url, *asked, "--header", 'If-Range: "another"')
    assert (other.status, other.body) == (200, content)
    head = ask(node, blob.url, "--head", *asked)
    assert (head.status, head.header("Content-Length")) == (200, str(blob.size))


def test_a_registry_without_ranges_still_serves_them(node: Node, agent: Agent, layer: Layer) -> None:
    """C10: it answers 200 with the whole, to the footer too; one transfer does for all."""
    layer.fault(Fault(on="bytes", matching=layer.encoded, ignore_range=True, times=None))
    footer = ask(node, layer.url, "--range", "-100")
    middle = ask(node, layer.url, "--range", f"{5 * MIB}-{5 * MIB + 99}")

    assert (footer.status, footer.body) == (206, layer.content[-100:])
    assert (middle.status, middle.body) == (206, layer.content[5 * MIB : 5 * MIB + 100])
    assert len(layer.reads) == 1


# Single flight


def test_eight_clients_of_one_cold_blob_share_a_transfer_and_stream_at_once(
    node: Node, agent: Agent, layer: Layer, registry: Registry
) -> None:
    """C11: when the registry has sent half, all eight have nearly that; all come from one transfer."""
    half = layer.size // 2
    layer.fault(Fault(on="bytes", matching=layer.encoded, stall_at=half, stall_s=3))
    files = [f"/tmp/herd-{number}" for number in range(8)]
    curl = ["curl", "--silent", "--show-error", "--fail", layer.url, "--output"]
    clients = [node.spawn([*curl, file]) for file in files]

    def sizes() -> list[int]:
        paths = [node.path(file) for file in files]
        return [path.stat().st_size if path.exists() else 0 for path in paths]

    until(lambda: min(sizes()) >= half - MIB, "all have what the registry has sent")
    assert max(sizes()) <= half
    for client in clients:
        assert client.wait(30) == 0, client.log
        client.close()
    content = layer.content
    assert all(node.path(file).read_bytes() == content for file in files)
    assert len(layer.reads) == 1
    assert layer.sent_bytes == layer.size
