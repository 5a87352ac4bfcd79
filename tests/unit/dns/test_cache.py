"""Answers aged, stale and bounded."""

import gc
import tracemalloc

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tidegate_dns.cache import Kept, Shelf
from tidegate_dns.message import parse_question
from tidegate_dns.policy import lesson, question_key


def query(name: str = "registry.test", id_: int = 1) -> bytes:
    record = DNSRecord.question(name)
    record.header.id = id_
    return bytes(record.pack())


def kept(asked: bytes, *, ttls: tuple[int, ...] = (300,), at: float = 0.0) -> Kept:
    reply = DNSRecord.parse(asked).reply()
    for number, ttl in enumerate(ttls):
        address = A(f"192.0.{2 + (number + 1) // 256}.{(number + 1) % 256}")
        reply.add_answer(RR(str(reply.q.qname), QTYPE.A, rdata=address, ttl=ttl))
    reply.add_ar(EDNS0(udp_len=1232, flags="do"))
    return studied(asked, bytes(reply.pack()), at=at)


def studied(asked: bytes, answer: bytes, *, at: float = 0.0) -> Kept:
    told = lesson(answer)
    read = parse_question(asked)
    assert told.keepable is not None and read is not None
    return Kept(
        qname=read[0].qname,
        answer=answer,
        keepable=told.keepable,
        addresses=told.addresses,
        kept_at=at,
        key=question_key(asked, read[0]),
    )


def shelf(*, stale_max_s: float = 1000, max_answers: int = 100, max_bytes: int = 1 << 20) -> Shelf:
    return Shelf(stale_max_s=stale_max_s, max_answers=max_answers, max_bytes=max_bytes)


def test_at_age_zero_a_replay_is_the_answer_byte_for_byte() -> None:
    """N13: EDNS and its flags, which sit where TTLs do, included."""
    answer = kept(query())
    answer.render(0.9)

    assert answer.rendered == answer.answer[2:]


def test_a_replay_of_any_age_has_the_flags_of_edns() -> None:
    """N13, RFC 6891 section 6.1.3: they stand where other records have their TTL."""
    answer = kept(query())
    for now in (100, 10_000):
        answer.render(now)
        (opt,) = DNSRecord.parse(b"\0\0" + answer.rendered).ar
        assert (opt.edns_do, opt.edns_ver, opt.edns_rcode, opt.ttl) == (1, 0, 0, 0x8000)


@given(
    ttls=st.lists(st.integers(0, 90_000), min_size=1, max_size=4).map(tuple),
    age=st.floats(0, 200_000, allow_nan=False),
)
def test_a_replay_never_promises_more_than_the_resolver_did(ttls: tuple[int, ...], age: float) -> None:
    """N13, RFC 8767 section 4: aged by the whole seconds passed, 30 once stale, and learned for longer."""
    answer = kept(query(), ttls=ttls)
    learned = answer.render(age)
    told = [record.ttl for record in DNSRecord.parse(b"\0\0" + answer.rendered).rr]

    if age < min(*ttls, 86_400, 86_400):
        assert told == [ttl - int(age) for ttl in ttls]
        assert answer.rendered_until <= min(*ttls, 86_400, 86_400)
    else:
        assert told == [30] * len(ttls)
    assert age < answer.rendered_until <= age + 1 or answer.rendered_until - age <= 1
    for address, ttl in zip(learned, told, strict=True):
        assert age + address.ttl_s >= answer.rendered_until + ttl


def test_a_query_finds_its_answer_under_any_id_and_in_no_other_bytes() -> None:
    """N13: keyed by the whole message but its id."""
    answers = shelf()
    answers.put(query(id_=1), kept(query()))

    assert answers.get(query(id_=2), 0) is not None
    assert answers.get(query("REGISTRY.test"), 0) is None


def test_answers_are_usable_until_stale_max_has_passed_since_they_were_fresh() -> None:
    """I8."""
    answers = shelf(stale_max_s=1000)
    answer = kept(query())
    answers.put(query(), answer)

    assert answers.get(query(), 1299.9) is answer and answers.like(answer.key, 1299.9) is answer
    assert answers.like(answer.key, 1300) is None and answers.get(query(), 1300) is None
    assert len(answers) == 0


def test_the_shelf_is_bounded_by_count_and_by_bytes_oldest_out_first() -> None:
    """I8."""
    for answers in (shelf(max_answers=3), shelf(max_bytes=4000)):
        for number in range(50):
            answers.put(query(f"n{number}.test"), kept(query(f"n{number}.test")))
        assert 1 <= len(answers) <= 4
        assert answers.get(query("n49.test"), 0) is not None and answers.get(query("n1.test"), 0) is None
        assert len(answers._by_question) == len(answers)


@pytest.mark.parametrize(("addresses", "names"), [(1, 1500), (30, 200), (300, 30)])
def test_the_bound_in_bytes_is_one_of_memory(addresses: int, names: int) -> None:
    """I8: offsets and addresses are objects, and many times as large as on the wire."""
    max_bytes = 1 << 20
    answers = shelf(max_answers=100_000, max_bytes=max_bytes)
    asked, packed = (
        query("n0000.test"),
        kept(query("n0000.test"), ttls=tuple(range(300, 300 + addresses))).answer,
    )
    tracemalloc.start()
    try:
        for number in range(names):
            named = f"n{number:04}".encode()
            other, answer = asked.replace(b"n0000", named), packed.replace(b"n0000", named)
            answers.put(other, studied(other, answer))
            answers.by_query[other[2:]].render(1)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(answers) < names
    assert 0.3 * max_bytes < used < 1.2 * max_bytes


def test_replacing_an_answer_does_not_grow_the_shelf() -> None:
    """I8: a name asked for a year."""
    answers = shelf(max_bytes=2500)
    for number in range(200):
        answers.put(query(), kept(query(), at=number))
        answers.put(query("other.test"), kept(query("other.test"), at=number))

    assert len(answers) == 2
    latest = answers.get(query(), 199)
    assert latest is not None and latest.kept_at == 199
