"""One agent per host, by a lock that names its holder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate_agent.single import SingleInstance
from tidegate_core.errors import StartRefused


def test_a_second_agent_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    """The refusal says which process to look at, and how to stop it."""
    with SingleInstance.acquire(tmp_path / "run"), pytest.raises(StartRefused) as refusal:
        SingleInstance.acquire(tmp_path / "run")

    assert f"process {os.getpid()} holds" in refusal.value.cause
    assert f"kill {os.getpid()}" in refusal.value.next_step


def test_the_lock_is_free_and_its_file_gone_after_release(tmp_path: Path) -> None:
    """I4: nothing outlives us."""
    first = SingleInstance.acquire(tmp_path)
    first.release()
    first.release()

    assert list(tmp_path.iterdir()) == []
    SingleInstance.acquire(tmp_path).release()


def test_a_killed_agent_leaves_a_file_but_no_lock(tmp_path: Path) -> None:
    """N4: the kernel frees the lock with its holder."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tidegate_agent.single import SingleInstance\n"
        "lock = SingleInstance.acquire(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )

    assert killed.returncode < 0
    assert (tmp_path / "agent.lock").exists()
    with SingleInstance.acquire(tmp_path):
        assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"


def test_a_runtime_directory_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    """The refusal names the path and what to type."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StartRefused, match=r"cannot lock .*agent\.lock: Not a directory") as refusal:
        SingleInstance.acquire(tmp_path / "file" / "run")
    assert "runtime_dir" in refusal.value.next_step
