"""Who is left alone, from what is known of a process."""

import pytest

from tidegate_agent.clients.process import Process, parse_stat, service_of
from tidegate_agent.clients.verdict import RUNTIMES, Reason, doubtful, what_to_type, why_splice

START = 500


def process(name: str, *, sees_store: bool = True, pid: int = 7) -> Process:
    return Process(pid=pid, started_ticks=START, name=name, sees_store=sees_store)


BEFORE, AFTER = process("").started - 1, process("").started + 1


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_started_before_the_anchor_is_left_alone(name: str) -> None:
    """N9: and one that started after it is not."""
    assert why_splice(process(name), trusted_since=AFTER) is Reason.NOT_RESTARTED
    assert why_splice(process(name), trusted_since=BEFORE) is None


def test_another_program_is_not_suspected_for_its_age() -> None:
    """N9: many read the store for each connection; its alert tells if it does not."""
    assert why_splice(process("java"), trusted_since=AFTER) is None


@pytest.mark.parametrize("name", ["slirp4netns", "pasta", "pasta.avx2", "qemu-system-x86", "qemu-system-aar"])
def test_what_carries_the_connections_of_others_is_left_alone(name: str) -> None:
    """N9: rootless containers and virtual machines have a trust store of their own."""
    assert why_splice(process(name), trusted_since=BEFORE) is Reason.RELAY


def test_a_client_with_another_store_is_left_alone() -> None:
    """N9: a pod on the host's network."""
    assert why_splice(process("curl", sees_store=False), trusted_since=BEFORE) is Reason.OTHER_STORE


def test_of_several_possible_clients_one_doubtful_is_enough() -> None:
    """N9, I1: where no right tells which of them it is, no pull of the doubtful one is lost."""
    stale = process("containerd", pid=2)

    assert doubtful([process("ctr"), stale], trusted_since=AFTER) == (stale, Reason.NOT_RESTARTED)
    assert doubtful([process("ctr"), process("curl")], trusted_since=AFTER) is None


def test_without_a_store_nobody_is_suspected() -> None:
    """I1: then nothing is steered either."""
    assert why_splice(process("dockerd"), trusted_since=None) is None


@pytest.mark.parametrize(
    ("runtime", "service", "typed"),
    [
        ("dockerd", "", "systemctl restart docker"),
        ("containerd", "", "systemctl restart containerd"),
        ("containerd", "k3s", "systemctl restart k3s"),
    ],
)
def test_a_runtime_is_restarted_by_its_own_service(runtime: str, service: str, typed: str) -> None:
    """N9: k3s runs a containerd of its own."""
    assert what_to_type(runtime, service) == typed


@pytest.mark.parametrize(
    ("cgroup", "service"),
    [
        ("0::/system.slice/docker.service\n", "docker"),
        ("5:devices:/x.service\n1:name=systemd:/system.slice/k3s.service\n0::/\n", "k3s"),
        ("0::/system.slice/k3s.service/kubepods/pod1\n", "k3s"),
        ("0::/user.slice/user@7.service/app.slice/docker.service\n", "docker"),
        ("0::/user.slice/session-2.scope\n", ""),
        ("0::/\n", ""),
        ("nonsense", ""),
    ],
)
def test_a_cgroup_tells_the_service(cgroup: str, service: str) -> None:
    """N9: in both versions of the hierarchy."""
    assert service_of(cgroup) == service


@pytest.mark.parametrize("name", ["bash", "a b", "(sd-pam)", "x) S 1 (y", ")", ""])
def test_a_name_may_hold_anything(name: str) -> None:
    """N9: proc_pid_stat(5) does not escape it, and whoever starts a program chooses it."""
    line = f"42 ({name}) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10 1\n"

    assert parse_stat(line.encode()) == (name, 98765)


@pytest.mark.parametrize("line", [b"", b"42", b"42 (x) S 1", b"42 (x) " + b"z " * 30])
def test_what_is_no_stat_line_is_refused(line: bytes) -> None:
    """N9: the client is unknown then."""
    with pytest.raises(ValueError, match=r"stat line|int"):
        parse_stat(line)
