"""A store of a million blobs: how soon the agent steers, what its survey takes, and what a look-up costs.

Run `.venv/bin/python benchmarks/index.py [--rounds N] [--blobs N]` as root; a million takes 2 GB of memory
and some minutes. The blobs are hard links to a few files on tmpfs, under a million digests; the rows of the
index are written as the agent would have. Look-ups are those of a hit: its row in the index and its file, in
this process, from one event loop, for digests drawn at random. The index of the look-ups lies on a disk,
where "cold" means that the page cache was told to drop it before each.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import uvloop
from comparison import Report, Row, at_most, percentile
from peer import Agent, Lab, Node, require, until

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.storage.index import Index
from tidegate_proxy.storage.store import Store
from tidegate_proxy.storage.survey import survey

STATE = "/var/lib/tidegate"
STEERS = '"event": "steering"'
LINKED = 64
"""Files behind the names: what a name costs counts here, not what its bytes do."""
MANIFESTS = 10
"""One blob in so many is a manifest."""
LOOKUPS = 2000
COLD_LOOKUPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blobs", type=int, default=1_000_000)
    given = parser.parse_args()
    require()
    report = Report(benchmark="index", rounds=given.rounds)
    with Lab() as lab:
        node = lab.node
        node.install_trust()
        empty = [started(node) for _ in range(given.rounds)]
        state = node.path(STATE)
        with tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
            index = Path(disk) / "index.sqlite"
            made(state, index, given.blobs)
            shutil.copyfile(index, state / "index.sqlite")
            full = [started(node) for _ in range(given.rounds)]
            measured = Measured(state, index, given.blobs, given.rounds)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measured.all())
            size_mib = index.stat().st_size / 2**20
    report.add(
        Row(
            what=f"exec to steering, {given.blobs:,} blobs",
            unit="s",
            tidegate=full,
            peer=empty,
            peer_name="none stored",
        )
    )
    report.add(Row(what="the same", unit="s", tidegate=full, target=at_most(2.0)))
    for row in measured.rows():
        report.add(row)
    report.add(Row(what="size of the index", unit="MiB", tidegate=[size_mib]))
    report.finish()


def started(node: Node) -> float:
    """Seconds from exec until the agent's log says that it steers."""
    began = time.monotonic()
    agent: Agent = node.start_agent()

    def steers() -> bool:
        if not agent.supervisor.running:
            raise SystemExit(f"the agent ended:\n{agent.log}")
        return STEERS in agent.log

    until(steers, "the agent steers", within_s=60, every_s=0.002)
    took = time.monotonic() - began
    agent.stop()
    print(f"steers after {took:.2f} s", flush=True)
    return took


def digests(blobs: int) -> Iterator[str]:
    return (hashlib.sha256(b"%d" % number).hexdigest() for number in range(blobs))


def made(state: Path, index: Path, blobs: int) -> None:
    """Give the state directory of a stopped agent that many blobs, and a new index their rows."""
    began = time.monotonic()
    for leftover in state.glob("index.sqlite*"):
        leftover.unlink()
    asyncio.run(Index.open(index).close())
    sources = []
    for number in range(LINKED):
        source = state / f"linked-{number}"
        source.write_bytes(b"not what it hashes to" * 100)
        sources.append(str(source))
    folder = state / "blobs" / "sha256"
    for prefix in range(256):
        (folder / f"{prefix:02x}").mkdir(parents=True, exist_ok=True)
    for number, encoded in enumerate(digests(blobs)):
        os.link(sources[number % LINKED], folder / encoded[:2] / encoded)
    size, now = len(b"not what it hashes to" * 100), time.time()
    connection = sqlite3.connect(index, isolation_level=None)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO descriptors VALUES (?, ?, ?)",
        (
            (f"sha256:{encoded}", MANIFEST_TYPES[0], size)
            for number, encoded in enumerate(digests(blobs))
            if number % MANIFESTS == 0
        ),
    )
    connection.executemany(
        "INSERT INTO blobs VALUES (?, ?, ?, ?)",
        (
            (f"sha256:{encoded}", size, now - random.random() * 1e6, int(number % MANIFESTS == 0))
            for number, encoded in enumerate(digests(blobs))
        ),
    )
    connection.execute("COMMIT")
    connection.close()
    print(f"made {blobs:,} blobs in {time.monotonic() - began:.0f} s", flush=True)


class Measured:
    """Look-ups and a survey over one index, in this process."""

    def __init__(self, state: Path, on_disk: Path, blobs: int, rounds: int) -> None:
        self._state = state
        self._on_disk = on_disk
        self._blobs = blobs
        self._rounds = rounds
        self._random = random.Random(7)
        self._samples: dict[str, list[float]] = {}
        self._lag: list[float] = []
        self._lag_without: list[float] = []
        self._survey: list[float] = []

    async def all(self) -> None:
        for _ in range(self._rounds):
            await self._look_up()
            await self._survey_once()

    def rows(self) -> Iterator[Row]:
        for what, samples in self._samples.items():
            bounded = "cold" not in what
            yield Row(
                what=f"{what}, p50",
                unit="us",
                tidegate=samples[0::2],
                target=at_most(100) if bounded else None,
            )
            yield Row(what=f"{what}, p99", unit="us", tidegate=samples[1::2])
        yield Row(what="survey of all names", unit="s", tidegate=self._survey)
        yield Row(
            what="the loop held up meanwhile, longest",
            unit="ms",
            tidegate=self._lag,
            peer=self._lag_without,
            peer_name="no survey",
        )

    async def _look_up(self) -> None:
        store = Store(self._state, durability="relaxed")
        path = self._on_disk
        index = Index.open(path, remembered=1)
        await self._timed("hit, not in the index's memory", LOOKUPS, self._hit(store, index))
        busy = asyncio.create_task(_uses(index, self._draw))
        await self._timed("the same, while uses are written", LOOKUPS, self._hit(store, index))
        busy.cancel()
        await index.close()

        def dropped() -> None:
            for each in (path, path.with_name(f"{path.name}-wal")):
                if each.exists():
                    with each.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        os.sync()
        index = Index.open(path, remembered=1)
        await self._timed("hit, index cold on disk", COLD_LOOKUPS, self._hit(store, index), before=dropped)
        await index.close()

        index = Index.open(path)
        chosen = [self._draw(manifests=True) for _ in range(100)]
        for digest in chosen:
            await index.descriptor(digest)
        drawn = (chosen[number % 100] for number in count())
        await self._timed("hit, in the index's memory", LOOKUPS, self._hit(store, index, drawn))
        await index.close()
        store.close()

    def _hit(
        self, store: Store, index: Index, drawn: Iterator[Digest] | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def hit() -> None:
            digest = next(drawn) if drawn is not None else self._draw(manifests=True)
            began = time.perf_counter()
            blob = store.blob(digest)
            descriptor = await index.descriptor(digest)
            self._took = time.perf_counter() - began
            assert blob is not None
            assert descriptor is not None
            blob.close()

        return hit

    async def _timed(
        self,
        what: str,
        times: int,
        hit: Callable[[], Awaitable[None]],
        before: Callable[[], None] | None = None,
    ) -> None:
        took = []
        for _ in range(times):
            if before is not None:
                before()
            await hit()
            took.append(self._took * 1e6)
        self._samples.setdefault(what, []).extend((percentile(took, 50), percentile(took, 99)))
        print(f"{what}: p50 {percentile(took, 50):.0f} us, p99 {percentile(took, 99):.0f} us", flush=True)

    async def _survey_once(self) -> None:
        store = Store(self._state, durability="relaxed")
        index = Index.open(self._on_disk)
        lag = [0.0]
        watching = asyncio.create_task(_watch(lag))
        began = time.monotonic()
        seen = await survey(store, index)
        self._survey.append(time.monotonic() - began)
        watching.cancel()
        self._lag.append(max(lag) * 1e3)
        lag = [0.0]
        watching = asyncio.create_task(_watch(lag))
        await asyncio.sleep(self._survey[-1])
        watching.cancel()
        self._lag_without.append(max(lag) * 1e3)
        held = f"longest hold-up {self._lag[-1]:.1f} ms, without {self._lag_without[-1]:.1f} ms"
        print(f"survey: {seen}, {self._survey[-1]:.1f} s, {held}", flush=True)
        await index.close()
        store.close()

    def _draw(self, *, manifests: bool = False) -> Digest:
        number = self._random.randrange(self._blobs // MANIFESTS) * MANIFESTS
        if not manifests:
            number += self._random.randrange(MANIFESTS)
        return Digest("sha256", hashlib.sha256(b"%d" % number).hexdigest())


async def _uses(index: Index, draw: Callable[[], Digest]) -> None:
    """Uses as a busy node has them: a thousand of them written at once, again and again."""
    while True:
        for _ in range(100):
            index.catalogue.touch(draw(), datetime.now(UTC))
        await asyncio.sleep(0.01)


async def _watch(lag: list[float]) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.001)
        lag.append(time.monotonic() - began - 0.001)


if __name__ == "__main__":
    main()
