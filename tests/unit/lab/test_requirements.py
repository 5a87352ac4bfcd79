"""What the lab asks of a machine, and what script/test puts there."""

import re
from pathlib import Path

from lab.requirements import PROGRAMS

SCRIPT = Path(__file__).parents[3] / "script/test"


def test_script_test_installs_every_package_that_the_lab_asks_for() -> None:
    """One that is missing skips the whole ring, and nobody notices where it was once put by hand."""
    listed = re.search(r"^packages=\((.*?)^\)", SCRIPT.read_text(), re.DOTALL | re.MULTILINE)

    assert listed
    assert set(PROGRAMS.values()) <= {line.strip() for line in listed[1].splitlines()}
