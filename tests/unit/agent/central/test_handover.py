"""Secrets leave the environment by becoming another process image."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from tidegate_agent.central.handover import become_without, taken_over
become_without(os.environ, lambda name: name == "AUTH_REGISTRIES")
found = taken_over(os.environ)
here = open("/proc/self/environ").read() + open("/proc/self/cmdline").read()
print(os.getpid(), found == {"AUTH_REGISTRIES": "a:b:" + "secret"}, "b:sec" + "ret" in here, sys.argv[1:])
print(taken_over(os.environ) == {})
print(sorted(link for link in map(os.readlink, (f"/proc/self/fd/{n}" for n in range(20) if os.path.islink(
    f"/proc/self/fd/{n}"))) if "memfd" in link))
"""


def test_the_password_is_known_and_neither_in_environ_nor_in_cmdline(tmp_path: Path) -> None:
    """C17: same pid, same arguments; what was handed over can be read once and lies nowhere."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program), "an argument"],
        env={"AUTH_REGISTRIES": "a:b:secret", "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        output, _ = process.communicate(timeout=20)

    assert output.splitlines() == [f"{process.pid} True False ['an argument']", "True", "[]"]
