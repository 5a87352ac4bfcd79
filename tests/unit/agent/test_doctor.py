"""`tidegate doctor`: each thing that keeps pulls from the cache is said, with what to type."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tidegate_agent.doctor import Machine, diagnosis, findings, nobody_answers, text_of
from tidegate_agent.firewall_mark import ByMark
from tidegate_agent.status import (
    BypassedConnection,
    BypassedStatus,
    CacheStatus,
    CredentialStatus,
    DnsStatus,
    ForwardedStatus,
    Status,
    SteeringStatus,
    TrustStatus,
    UnsteerableStatus,
    UpstreamStatus,
)
from tidegate_core.errors import TidegateError

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
WELL = Status(
    version="1",
    pid=2,
    supervisor_pid=1,
    uptime_s=60.0,
    hosts=["ghcr.io"],
    steering=SteeringStatus(
        active=True, backend="nft", reason="", paused=False, paused_until=None, lease_s=3.0, addresses=4
    ),
    dns=DnsStatus(
        resolvers=["192.0.2.53"], mode="learn", queries=1, forwarded=0, learned=4, resolver_reachable=True
    ),
    cache=CacheStatus(hits=1, misses=1, stale=0, bytes=1, blobs=1, max_bytes=2, saved_bytes=1),
    upstreams=[UpstreamStatus(kind="direct", url="", healthy=True, reason="")],
    trust=[TrustStatus(runtime="system store", pid=None, trusts=True, action="")],
    clients_spliced=[],
    bypassed=BypassedStatus(causes={"paused": 7}),
)
MACHINE = Machine(
    mark=ByMark(value=0x74, mask=0xFF), forwarded=False, policy_marks=(), tracked=10, trackable=1000
)


def bypass(
    cause: str, *, ago: timedelta = timedelta(minutes=1), exe: str = "/usr/bin/skopeo"
) -> BypassedConnection:
    at = (NOON - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
    return BypassedConnection(
        at=at, cause=cause, host="ghcr.io", address="192.0.2.1:443", exe=exe, pid=7 if exe else None
    )


def told(status: Status = WELL, machine: Machine = MACHINE) -> list[tuple[str, str]]:
    return [(each.cause, each.next_step) for each in findings(status, machine, now=NOON)]


def changed(part: str, **values: Any) -> Status:
    return msgspec.structs.replace(WELL, **{part: msgspec.structs.replace(getattr(WELL, part), **values)})


def test_where_nothing_is_wrong_nothing_is_found() -> None:
    """N20: what was paused an hour ago, or is counted in full since the start, is no finding."""
    assert told() == []
    assert diagnosis([]).ok
    assert "nothing is wrong" in text_of(diagnosis([]))[0]


def test_an_agent_that_does_not_run_is_the_only_finding() -> None:
    """N20: the words of `tidegate status`."""
    found = diagnosis([nobody_answers(TidegateError("no agent is running", next_step="tidegate agent"))])

    assert not found.ok
    assert list(text_of(found)) == ["no agent is running", "  tidegate agent"]


@pytest.mark.parametrize(
    ("status", "words", "step"),
    [
        (changed("steering", active=False, backend="none"), 'backend is "none"', "auto"),
        (changed("steering", active=False, paused=True, reason="paused by"), "paused by", "tidegate resume"),
        (
            changed("steering", active=False, reason="the store lacks it", action="trust install"),
            "does not steer: the store lacks it",
            "trust install",
        ),
        (changed("dns", resolver_reachable=False), "no resolver answers: 192.0.2.53", "resolv.conf"),
        (
            changed(
                "dns", unsteerable=[UnsteerableStatus(what="DoT", why="unseen", next_step="turn it off")]
            ),
            "DoT: unseen",
            "turn it off",
        ),
        (changed("bypassed", blind="EPERM"), "not noticed: EPERM", "modprobe"),
        (
            msgspec.structs.replace(
                WELL,
                trust=[*WELL.trust, TrustStatus(runtime="dockerd", pid=9, trusts=False, action="restart it")],
            ),
            "dockerd (pid 9) does not trust",
            "restart it",
        ),
        (
            msgspec.structs.replace(
                WELL,
                forwarded=[
                    ForwardedStatus(
                        bridge="docker0", networks=[], steered=False, reason="a firewall", action="iptables"
                    )
                ],
            ),
            "behind docker0 are not steered: a firewall",
            "iptables",
        ),
        (
            msgspec.structs.replace(
                WELL,
                upstreams=[UpstreamStatus(kind="central", url="https://c", healthy=False, reason="dead")],
            ),
            "upstream central https://c: dead",
            "upstreams.md",
        ),
        (
            msgspec.structs.replace(
                WELL,
                credentials=[
                    CredentialStatus(
                        registry="r",
                        username="u",
                        share="node",
                        working=False,
                        reason="refused",
                        action="log in",
                    )
                ],
            ),
            "login u at r: refused",
            "log in",
        ),
    ],
)
def test_each_state_that_keeps_pulls_from_the_cache_is_said(status: Status, words: str, step: str) -> None:
    """N20: its cause, and what to type."""
    ((cause, next_step),) = told(status)

    assert words in cause
    assert step in next_step


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("resolved_elsewhere", "DNS over TLS"),
        ("not_learned", "learned too late"),
        ("not_redirected", "something else took them"),
        ("forwarded", "containers or hosts behind"),
        ("other_store", "trust store of their own"),
        ("relay", "for others"),
        ("distrusted", "refused this node's certificate"),
        ("node_login", "login"),
    ],
)
def test_bypasses_of_the_last_hour_are_said_by_cause(cause: str, words: str) -> None:
    """N20, N10: how many, why, and who was the last."""
    recent = [bypass(cause), bypass(cause, ago=timedelta(minutes=59)), bypass(cause, ago=timedelta(hours=2))]
    ((said, step),) = told(changed("bypassed", recent=recent))

    assert said.startswith("2 registry connections past the cache")
    assert words in said
    assert "/usr/bin/skopeo (pid 7) to ghcr.io at 192.0.2.1:443, 2026-11-21T11:59:00Z" in said
    assert step


@pytest.mark.parametrize("cause", ["paused", "not_steering", "not_restarted"])
def test_bypasses_of_which_something_else_speaks_are_not_said_twice(cause: str) -> None:
    """N20: the state, or the runtime, is a finding while it lasts."""
    assert told(changed("bypassed", recent=[bypass(cause)])) == []


def test_a_client_that_could_not_be_told_is_called_unknown() -> None:
    """N20, N10: it had ended before it was looked for."""
    ((said, _),) = told(changed("bypassed", recent=[bypass("resolved_elsewhere", exe="")]))

    assert "an unknown program to ghcr.io" in said


@pytest.mark.parametrize(("mark", "overlaps"), [((0x10, 0x30), True), ((0x4000, 0x4000), False)])
def test_routing_by_bits_of_our_mark_is_said_where_we_use_one(mark: tuple[int, int], overlaps: bool) -> None:
    """N20, I5: kube-proxy, Calico, Cilium and Tailscale keep theirs elsewhere."""
    machine = Machine(
        mark=ByMark(value=0x74, mask=0xFF), forwarded=False, policy_marks=(mark,), tracked=0, trackable=0
    )
    by_user = Machine(mark=None, forwarded=False, policy_marks=(mark,), tracked=0, trackable=0)

    assert bool(told(machine=machine)) is overlaps
    assert told(machine=by_user) == []


@pytest.mark.parametrize(("tracked", "full"), [(900, False), (901, True)])
def test_a_table_of_connections_that_is_nearly_full_is_said(tracked: int, full: bool) -> None:
    """N20: beyond its limit new connections are dropped, whoever makes them."""
    machine = Machine(mark=None, forwarded=False, policy_marks=(), tracked=tracked, trackable=1000)

    assert [("nf_conntrack_max=2000" in step) for _, step in told(machine=machine)] == [True] * full
