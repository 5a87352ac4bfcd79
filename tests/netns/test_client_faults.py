"""The client by fault matrix: what an origin does to a pull, and what the agent makes of it.

In CI each row once, the clients taking turns; the slow ring has them all. `script/fault-matrix` prints the
table of docs/operations/upstream-faults.md, with what the same clients make of it without the agent.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fault_matrix.row import CLIENTS, Row, private_rows, rows
from fault_matrix.stage import Stage
from lab import Lab

TURNS = [
    pytest.param(row, row.turn, id=f"{row}, {row.turn}")
    for row in (*rows(), *private_rows())
    if not row.takes_long
]
OTHERS = [
    pytest.param(row, client, id=f"{row}, {client}")
    for row in rows()
    for client in CLIENTS
    if (row.takes_long or client != row.turn) and client not in row.spared
]


@pytest.fixture(scope="module")
def stage(session_lab: Lab) -> Iterator[Stage]:
    """One node with every client, and an agent; each cell has an image of its own."""
    session_lab.reset()
    yield Stage(session_lab)
    session_lab.reset()


def play(stage: Stage, row: Row, client: str) -> None:
    seen = stage.play(row, client)

    assert seen.met, "the fault did not meet anything: the test shows nothing"
    if row.hopeless:
        assert not seen.well, f"better than expected: it is said to be hopeless, because {row.hopeless}"
    else:
        assert seen.well, seen.pull
        assert seen.stored, "it went past the cache"
    assert stage.pulls_when_healed(row, client)


@pytest.mark.parametrize(("row", "client"), TURNS)
def test_what_an_origin_does_to_a_pull_the_client_does_not_notice(
    stage: Stage, row: Row, client: str
) -> None:
    """C3, C8, C12, C15, I2: mended inside the agent, and cached; or the row says why nothing could help."""
    play(stage, row, client)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("row", "client"), OTHERS)
def test_it_is_so_for_every_client(stage: Stage, row: Row, client: str) -> None:
    """C3, C8, C12, I2: the rest of the matrix, and what takes long."""
    play(stage, row, client)
