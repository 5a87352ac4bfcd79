"""`tidegate demo`: hands over to the demo, which is played in the lab of the source checkout.

The lab is not part of the installed package (docs/decisions/0013-the-demo-lives-with-the-lab.md). Nothing of
the demo is decided here.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from tidegate_core.errors import TidegateError

TESTS = Path(__file__).resolve().parents[2] / "tests"
NEEDS = ("pyroute2",)  # beyond what the agent needs: the extra `demo` of pyproject.toml


def play(settings: Sequence[str], *, tests: Path = TESTS, needs: Sequence[str] = NEEDS) -> NoReturn:
    """Become the demo, whose agent gets these `KEY=VALUE` settings.

    TidegateError without a checkout, or without a module that it needs.
    """
    if not (tests / "lab/demo/__main__.py").is_file():
        raise TidegateError(
            "the demo needs the lab, which only the source checkout has",
            next_step="git clone the repository of Tidegate, then: sudo tidegate/script/demo",
        )
    if absent := [module for module in needs if find_spec(module) is None]:
        raise TidegateError(
            f"the demo needs Python packages that are not installed: {', '.join(absent)}",
            next_step=f"sudo {tests.parent / 'script/demo'}",
        )
    arguments = [part for setting in settings for part in ("--set", setting)]
    paths = [str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: what lies in the working directory is not to be taken for the lab.
    argv = [sys.executable, "-P", "-m", "lab.demo", *arguments]
    os.execve(sys.executable, argv, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
