"""What all rings have in common: which tests may run beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

ONE_AT_A_TIME = ("netns", "vm")
"""Rings that share a lab, and whose bounds on time mean something only when a core is theirs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep those rings on one worker of `pytest -n 2 --dist loadgroup`."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in ONE_AT_A_TIME:
            item.add_marker(pytest.mark.xdist_group("lab"))
