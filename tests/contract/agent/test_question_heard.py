"""What the rules read of a question, against what real resolvers read of the same octets.

A question that the rules leave to the kernel must not be one that a resolver answers as a steered name. One
form is, and no client writes it: a name with a compression pointer in the question, which dnsmasq follows
(RFC 1035 section 4.1.4 allows a pointer to an earlier name only, and there is none). Such a look-up goes
direct, so at worst a pull misses the cache.
"""

import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dns_corpus.mutator import Mutator
from lab import until
from tidegate_agent.steering.question import questions_of
from tidegate_dns.policy import Forward, decide
from tidegate_dns.zone import Zone
from unit.agent.test_question import datagram, matches

STEERED = ("registry-1.docker.test", "r.test", "eu.wild.test")
ZONE = Zone.of(["registry-1.docker.test", "r.test", "*.wild.test"])
RULES = questions_of(ZONE)
ADDRESS = bytes([192, 0, 2, 7])

BATCH = 100
COUNTS = [50_000, pytest.param(500_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


def dnsmasq(folder: Path, port: int) -> list[str]:
    config = folder / "dnsmasq.conf"
    names = "".join(f"host-record={name},192.0.2.7,120\n" for name in STEERED)
    config.write_text(
        f"port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nlocal=/#/\n{names}"
    )
    return ["dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--pid-file=", "--user=root"]


def unbound(folder: Path, port: int) -> list[str]:
    config = folder / "unbound.conf"
    names = "".join(f'local-data: "{name}. 120 IN A 192.0.2.7"\n' for name in STEERED)
    config.write_text(
        f"""
        remote-control:
          control-enable: no
        server:
          interface: 127.0.0.1@{port}
          do-daemonize: no
          use-syslog: no
          username: ""
          chroot: ""
          directory: "{folder}"
          pidfile: ""
          local-zone: "." static
          {names}"""
    )
    return ["unbound", "-d", "-c", str(config)]


@pytest.fixture(params=[dnsmasq, unbound], ids=["dnsmasq", "unbound"])
def resolver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket connected to a resolver that knows the steered names and no others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Callable[[Path, int], list[str]] = request.param
    program, *options = start(tmp_path, port)
    found = shutil.which(program, path="/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    process = subprocess.Popen([found, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.connect(("127.0.0.1", port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            until(lambda: bool(heard(sock, [])), f"{program} answers")
            yield sock
    finally:
        process.terminate()
        process.wait(10)


def query(name: bytes, more: bytes = b"", *, questions: int = 1) -> bytes:
    return struct.pack(">6H", 0, 0x0100, questions, 0, 0, 0) + name + struct.pack(">HH", 1, 1) + more


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def swapped(name: bytes) -> bytes:
    return bytes(
        octet ^ 0x20 if chr(octet).isalpha() and number % 2 else octet for number, octet in enumerate(name)
    )


SEEDS = [
    form
    for name in map(wire, STEERED)
    for form in (
        query(name),
        query(swapped(name)),
        query(name, b"\0\0\x29\x04\xd0\0\0\0\0\0\0"),
        query(name, b"behind the end"),
        query(name, name[:-1] + b"\0\0\1\0\1", questions=2),
        query(name[:-1] + b"\xc0\x0b"),
        query(name[: 1 + name[0]] + b"\xc0" + bytes([12 + 1 + name[0] + 2 + 4]), name[1 + name[0] :]),
        query(b"\xc0\x12", name),
    )
]


def heard(sock: socket.socket, messages: list[bytes]) -> dict[int, bytes]:
    """Which of the messages are answered with the steered names' address: their answers, by number.

    The last question is a good one, so that the end is known; resolvers with one thread answer in order.
    """
    last = len(messages)
    for number, message in enumerate([*messages, query(wire(STEERED[0]))]):
        sock.send(number.to_bytes(2, "big") + message[2:])
    told = {}
    sock.settimeout(10)
    try:
        while last not in told:
            answer = sock.recv(65535)
            if answer[2] & 0x80 and answer[6:8] != b"\0\0" and ADDRESS in answer[12:]:
                told[int.from_bytes(answer[:2], "big")] = answer
    except (TimeoutError, ConnectionRefusedError):
        pass
    return told


def is_steered(message: bytes) -> bool:
    """Whether a rule sends the message to the responder."""
    packet = datagram("x")[:8] + message
    return any(matches(rule, packet) for rule in RULES)


def has_pointer(message: bytes) -> bool:
    """Whether the question's name has a compression pointer."""
    offset = 12
    while offset < len(message) and message[offset]:
        if message[offset] >= 0xC0:
            return True
        offset += 1 + message[offset]
    return False


@pytest.mark.parametrize("count", COUNTS)
def test_what_a_resolver_hears_as_a_steered_name_so_do_the_rules(resolver: socket.socket, count: int) -> None:
    """N2, N13: mutated questions; the responder hears it in all that the rules send it, too."""
    seed = int(os.environ.get("TIDEGATE_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TIDEGATE_FUZZ_SEED={seed}")  # noqa: T201 - to have the same packets again
    mutator = Mutator(seed, SEEDS)
    answered = missed = 0
    for start in range(0, count, BATCH):
        messages = [m for m in (mutator.next() for _ in range(BATCH)) if len(m) >= 12]
        told = heard(resolver, messages)
        assert len(messages) in told, start
        for number in range(len(messages)):
            if number not in told:
                continue
            answered += 1
            message = messages[number]
            if has_pointer(message):
                missed += not is_steered(message)
                continue
            assert is_steered(message), message
            decision = decide(message, ZONE)
            assert isinstance(decision, Forward) and decision.steered is not None, message

    assert answered > count // 20
    print(f"{answered} answered as steered, {missed} of them went direct, with a pointer")  # noqa: T201


def test_a_pointer_in_the_question_is_the_gap(resolver: socket.socket) -> None:
    """N2: known, and harmless: the rules let it go direct, and the responder forwards it unread."""
    pointed = [message for message in SEEDS if has_pointer(message)]
    told = heard(resolver, pointed)

    assert [is_steered(message) for message in pointed].count(True) == 1  # behind the sixteenth octet
    assert all(decide(message, ZONE) == Forward(steered=None) for message in pointed)
    assert len(told) - 1 in (0, len(pointed))  # unbound says FORMERR to all, dnsmasq follows all
