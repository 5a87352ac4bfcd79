"""sd_notify: real datagrams to real sockets, in the file system and in the abstract namespace."""

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tidegate_core.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's socket, and its name as NOTIFY_SOCKET gives it."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@tidegate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiver.settimeout(5)
        yield name, receiver


def test_every_state_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    """N17: sd_notify(3), both kinds of sockets."""
    name, receiver = manager
    notifier = Notifier.of({"NOTIFY_SOCKET": name}, pid=1)

    sent = [
        notifier.ready("steering 11 hosts"),
        notifier.status("resolver\nis down"),
        notifier.alive(),
        notifier.main_pid(42),
        notifier.stopping(),
    ]

    assert all(sent)
    assert [receiver.recv(4096).decode() for _ in sent] == [
        "READY=1\nSTATUS=steering 11 hosts",
        "STATUS=resolver is down",
        "WATCHDOG=1",
        "MAINPID=42",
        "STOPPING=1",
    ]


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_a_socket_of_a_known_kind_nothing_is_sent(name: str) -> None:
    """N17: the same program runs with and without systemd."""
    assert Notifier.of({"NOTIFY_SOCKET": name}, pid=1).ready() is False
    assert Notifier.of({}, pid=1).ready() is False


def test_a_manager_that_is_gone_does_not_harm_the_service(tmp_path: Path) -> None:
    """I1: reporting must never be a reason to fail."""
    assert Notifier.of({"NOTIFY_SOCKET": str(tmp_path / "gone")}, pid=1).alive() is False


def test_the_watchdog_concerns_only_the_process_it_names() -> None:
    """N17: WATCHDOG_USEC is inherited by children, WATCHDOG_PID says whose it is."""
    asked = {"WATCHDOG_USEC": "3000000"}

    assert Notifier.of(asked, pid=7).watchdog == timedelta(seconds=3)
    assert Notifier.of(asked | {"WATCHDOG_PID": "7"}, pid=7).watchdog == timedelta(seconds=3)
    assert Notifier.of(asked | {"WATCHDOG_PID": "8"}, pid=7).watchdog is None
    assert Notifier.of({}, pid=7).watchdog is None
