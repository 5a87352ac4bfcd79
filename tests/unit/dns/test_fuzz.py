"""Mutated messages, a hundred thousand in CI and a million in the slow suite: nothing raises, nothing grows.

The seed is printed, and taken from TIDEGATE_FUZZ_SEED when that is set.
"""

import asyncio
import gc
import os
import random
import sys
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from dns_corpus import pairs
from dns_corpus.mutator import Mutator
from tidegate_dns.cache import Kept, Shelf
from tidegate_dns.framing import framed, read_message
from tidegate_dns.message import parse_question
from tidegate_dns.policy import Answer, Forward, answers, decide, lesson, question_key
from tidegate_dns.reply import refused, retold, servfail, udp_size
from tidegate_dns.zone import Zone

ZONE = Zone.of(["*.learned.test"], {"*.sinkhole.test": IPv4Address("127.74.0.1")})
CORPUS = [pair for parent in ("learned.test", "sinkhole.test", "other.test") for pair in pairs(parent)]
QUERIES = [pair.query for pair in CORPUS]
ANSWERS = [answer for pair in CORPUS for answer in (pair.over_udp, *pair.over_tcp)]

COUNTS = [100_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
WARM_UP = 5_000
MAX_GROWTH_BLOCKS = 2_000


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("TIDEGATE_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TIDEGATE_FUZZ_SEED={seed}")  # noqa: T201 - to have the same packets again
    return seed


def growth_over(rounds: int, act: Callable[[], None]) -> int:
    """By how many objects the heap has grown, the first few rounds aside."""
    before = 0
    for number in range(rounds):
        if number == WARM_UP:
            gc.collect()
            before = sys.getallocatedblocks()
        act()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutated_question_or_answer_makes_the_policy_raise_or_grow(seed: int, count: int) -> None:
    """N13, I8: both sides of the core, and what is made of them."""
    questions, told = Mutator(seed, QUERIES), Mutator(seed + 1, ANSWERS)
    shelf = Shelf(stale_max_s=1000, max_answers=50, max_bytes=1 << 20)
    kept = [0]

    def act() -> None:
        query, answer = questions.next(), told.next()
        judge(query, answer)
        judge(answer, query)
        kept[0] += keep(shelf, query, answer)

    grown = growth_over(count // 2, act)  # each of the two is a packet

    assert grown < MAX_GROWTH_BLOCKS
    assert kept[0] > count // 50  # enough of them were still read


def judge(query: bytes, answer: bytes) -> None:
    """Everything that is done with a packet before it is passed on, and what has to be true of it."""
    decision = decide(query, ZONE)
    answers(query, answer)
    if isinstance(decision, Answer):
        assert answers(query, decision.message)
        assert len(decision.message) <= udp_size(query)
    if isinstance(decision, Forward):
        for reply in (servfail(query), refused(query)):
            assert reply[:2] == query[:2] and len(reply) <= max(len(query), 12)
            assert decide(reply, ZONE) != decision  # nobody answers an answer


def keep(shelf: Shelf, query: bytes, answer: bytes) -> bool:
    """What is done with an answer to a steered name, whether or not it is one."""
    told = lesson(answer)
    read = parse_question(query)
    if told.keepable is None or read is None:
        return False
    assert all(12 <= offset <= len(answer) - 4 for offset, _ in told.keepable.ttls)
    kept = Kept(
        qname=read[0].qname,
        answer=answer,
        keepable=told.keepable,
        addresses=told.addresses,
        kept_at=0,
        key=question_key(query, read[0]),
    )
    shelf.put(query, kept)
    for now in (0.5, 1e6):
        kept.render(now)
        assert len(kept.rendered) == len(answer) - 2
    for over_udp in (True, False):
        message = retold(answer, query, additional_offset=told.keepable.additional_offset, over_udp=over_udp)
        assert message is not None
        assert not over_udp or len(message) <= udp_size(query)
    return True


@pytest.mark.parametrize("count", COUNTS)
def test_no_stream_makes_the_framing_raise_or_grow(seed: int, count: int) -> None:
    """N13, I8: lengths that lie, ends anywhere, messages cut and glued together."""
    mutator = Mutator(seed, [*QUERIES, *ANSWERS])
    rng = random.Random(seed)
    read = [0]

    async def play() -> int:
        stream = [b""]

        def one() -> None:
            messages = [mutator.next() for _ in range(10)]
            stream[0] = b"".join(
                framed(message) if rng.random() < 0.9 else rng.randbytes(2) + message for message in messages
            )

        before = 0
        for number in range(count // 10):
            if number == WARM_UP // 10:
                gc.collect()
                before = sys.getallocatedblocks()
            one()
            read[0] += await swallow(stream[0], mutator)
        gc.collect()
        return sys.getallocatedblocks() - before

    grown = asyncio.run(play())

    assert grown < MAX_GROWTH_BLOCKS
    assert read[0] > count // 4


async def swallow(stream: bytes, mutator: Mutator) -> int:
    """How many messages a stream has that arrives in pieces; every octet of it is in one, or in a rest."""
    reader = asyncio.StreamReader()
    for piece in mutator.pieces(stream):
        reader.feed_data(piece)
    reader.feed_eof()
    count, octets = 0, 0
    try:
        while (message := await read_message(reader)) is not None:
            assert framed(message) == stream[octets : octets + 2 + len(message)]
            octets += 2 + len(message)
            count += 1
        assert octets == len(stream)
    except EOFError:
        assert octets < len(stream)
    return count
