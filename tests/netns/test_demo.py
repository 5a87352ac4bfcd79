"""script/demo: played on a terminal, on a machine without any network, which it leaves as it was."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.requirements import missing
from lab.trusting import trust_store_of_this_machine

CHECKOUT = Path(__file__).parents[2]
PLAYED_S = 110
HEADINGS = (
    "1. The agent starts",
    "2. Cold pull, skopeo",
    "3. Warm pull, podman",
    "4. Registry unplugged, skopeo",
    "5. SIGKILL",
    "6. Direct pull, skopeo",
)

# The shell around the demo looks before and after, and sends the signal that the test asks for.
AROUND = r"""
trap : INT HUP
mount -t tmpfs none /run
mount -t tmpfs none "$TMPDIR"
look() {
    ps -e -o comm= | grep -vx -e bash -e ps -e grep
    cat /proc/self/mounts
    nft list ruleset
    ip -o link | cut -d: -f2
    find /run "$TMPDIR"
}
signals=$1
shift
{ read -r signal pid; kill -"$signal" "$pid"; } <"$signals" &
before=$(look)
bash -c 'echo "the demo is pid $$"; exec "$0" "$@"' "$0" "$@"
echo "exit code $?"
after=$(look)
echo "left behind: $(diff <(echo "$before") <(echo "$after"))"
echo "that was all"
"""
APART = ("--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")


class Theatre:
    """script/demo on a terminal, and what it has written there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.signals = folder / "signals"
        os.mkfifo(self.signals)
        (folder / "tmp").mkdir()
        self.master, slave = pty.openpty()
        around = ["bash", "-c", AROUND, str(CHECKOUT / "script/demo"), str(self.signals), *arguments]
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "unshare", *APART, *around],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "TERM": "dumb",
                "TMPDIR": str(folder / "tmp"),
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""

    def until(self, pattern: str, timeout_s: float = PLAYED_S) -> "re.Match[str]":
        """Reads on until the pattern has been written; fails with all that was, when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.text, re.MULTILINE)):
            readable, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no {pattern!r} within {timeout_s} s in:\n{self.text}"
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace").replace("\r\n", "\n")
            except OSError as error:  # EIO: everybody has closed the other side
                raise AssertionError(f"ended without {pattern!r}:\n{self.text}") from error
        return found

    def stop(self, by: str) -> None:
        """Ends the demo as somebody at the terminal does, or by a signal."""
        if by == "Ctrl-C":
            os.write(self.master, b"\x03")
        else:
            pid = self.until(r"the demo is pid (\d+)")[1]
            self.signals.write_text(f"{by} {pid}\n")

    @property
    def end(self) -> tuple[int, str]:
        """The exit code, and what is left behind that was not there before."""
        self.until("^that was all")
        return int(self.until(r"^exit code (\d+)")[1]), self.until(r"left behind: ((?:.|\n)*?)\nthat was")[1]

    def close(self) -> None:
        self.process.kill()  # and with it every process of its namespace
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Theatre]]:
    """Starts the demo; afterwards the machine's own trust store and resolvers are what they were."""
    if reason := missing():
        pytest.skip(reason)
    before = trust_store_of_this_machine(), Path("/etc/resolv.conf").read_bytes()
    with ExitStack() as opened:

        def started(*arguments: str) -> Theatre:
            theatre = Theatre(tmp_path, *arguments)
            opened.callback(theatre.close)
            return theatre

        yield started
    assert (trust_store_of_this_machine(), Path("/etc/resolv.conf").read_bytes()) == before


def test_it_shows_every_step_without_any_network_and_leaves_nothing(play: Callable[..., Theatre]) -> None:
    """Issue 3, 6: cold, warm, unplugged, killed, direct, each with its time and where the bytes came from."""
    begun = time.monotonic()

    theatre = play()

    assert theatre.end == (0, ""), theatre.text
    assert time.monotonic() - begun < PLAYED_S
    assert re.findall(r"^\d\. [A-Z].*\w$", theatre.text, re.MULTILINE) == list(HEADINGS)
    rows = re.findall(
        r"^\d\. (\S+).*?  +([\d.]+ m?s) +(\S+(?: M?B)?) +(\S+(?: M?B)?) *$", theatre.text, re.MULTILINE
    )
    assert [(name, registry, cache) for name, _, registry, cache in rows] == [
        ("The", "-", "-"),
        ("Cold", "43.1 MB", "0 B"),
        ("Warm", "0 B", "43.1 MB"),
        ("Registry", "0 B", "43.1 MB"),
        ("SIGKILL", "-", "-"),
        ("Direct", "43.1 MB", "-"),
    ]
    assert "ok  the other node, without Tidegate: network is unreachable" in theatre.text
    assert "Every step showed what it claims" in theatre.text


@pytest.mark.parametrize(
    ("by", "moment", "exit_code"),
    [
        ("Ctrl-C", "^A lab on this machine", 130),  # while the lab is being made
        ("Ctrl-C", "^2. Cold pull", 130),
        ("TERM", "^4. Registry unplugged", 143),
        ("HUP", "^6. Direct pull", 129),
    ],
)
def test_stopped_in_the_middle_it_leaves_nothing(
    play: Callable[..., Theatre], by: str, moment: str, exit_code: int
) -> None:
    """Issue 3, 6: no process, mount, rule, link or file, at the moment the shell has its prompt again."""
    theatre = play()
    theatre.until(moment)

    theatre.stop(by)

    assert theatre.end == (exit_code, ""), theatre.text
    assert theatre.text.count("Stopped by SIG") == 1
    assert "Every step" not in theatre.text


@pytest.mark.parametrize(
    ("setting", "step", "said"),
    [
        ("default_registries=false", "Step 1 (The agent starts)", "the agent ended with 2"),
        ("dns.resolvers=10.77.0.99", "Step 2 (Cold pull, skopeo)", "the agent's status: 0 misses"),
    ],
)
def test_a_step_that_does_not_show_what_it_claims_fails_it(
    play: Callable[..., Theatre], setting: str, step: str, said: str
) -> None:
    """Issue 3, 6: with an agent that really does not do it: which step, what was seen, what to type."""
    theatre = play("--set", setting)

    assert theatre.end == (1, ""), theatre.text
    failure = theatre.until(rf"^{re.escape(step)} failed:\n((?:.|\n)*?)^exit code")[1]
    assert said in failure
    assert re.search(r"What to type:\n +sudo script/demo\n", failure)
    assert re.search(r"\n +sudo script/test tests/netns/test_\w+\.py\n", failure)
    assert "Every step" not in theatre.text


ORPHANS = """
import subprocess
from lab.demo import descendants
descendants.adopt_orphans()
orphan = subprocess.run(["sh", "-c", "sleep 1000 >&2 & echo $!"], stdout=subprocess.PIPE, text=True)
print(orphan.stdout, flush=True)
descendants.end_all()
"""


def test_what_was_orphaned_while_it_was_interrupted_is_ended_too() -> None:
    """Issue 3, 6: a signal may come when a host was started and nobody knows of it yet."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )

    assert not Path("/proc", done.stdout.strip()).exists()


def test_missing_programs_are_named_with_what_to_type(tmp_path: Path) -> None:
    """A machine that has the command line, and neither clients nor a registry."""
    if os.geteuid() != 0:
        pytest.skip("the demo asks for root first")
    tidegate = Path(sys.executable).with_name("tidegate")

    done = subprocess.run(
        [tidegate, "demo"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "programs that are not installed\n  apt install" in done.stderr
    assert {"skopeo", "podman", "docker-registry"} <= set(done.stderr.split())
