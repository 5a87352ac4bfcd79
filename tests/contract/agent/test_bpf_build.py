"""The shipped bytecode against its C source and the compiler."""

import subprocess
from pathlib import Path

import pytest

from tidegate_agent.steering.ebpf import hooks

CHECKOUT = Path(__file__).parents[3]
FOLDER = Path(hooks.__file__).parent


def build(folder: Path) -> bytes:
    built = subprocess.run(
        [CHECKOUT / "script/build-bpf", folder], check=False, capture_output=True, text=True
    )
    if "is not here" in built.stderr:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    return (folder / "steer.bpf.o").read_bytes()


def test_building_again_gives_the_very_bytes_that_are_shipped(tmp_path: Path) -> None:
    """N14: whoever has the compiler can see for themselves what the kernel is given."""
    assert build(tmp_path) == (FOLDER / "steer.bpf.o").read_bytes()
