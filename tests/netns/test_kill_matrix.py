"""The kill matrix, held to the design's bounds: N4, N5, N6, N18; I1, I4. `script/kill-matrix` prints it."""

from __future__ import annotations

import pytest

from kill_matrix.cell import BACKENDS, DEATHS, GRACEFUL, MOMENTS, Cell, all_cells, few_cells, some_cells
from kill_matrix.stage import play
from lab import Lab


def complaints(lab: Lab, cells: list[Cell]) -> dict[str, list[str]]:
    return {str(seen.cell): found for seen in play(lab, cells) if (found := seen.complaints())}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "death", [pytest.param(each, marks=pytest.mark.slow if each in GRACEFUL else ()) for each in DEATHS]
)
def test_whatever_a_client_does_a_death_costs_it_little_and_leaves_nothing(lab: Lab, death: str) -> None:
    """N4, N5, N18, I1, I4: every moment, one client each; nothing hangs, every retry succeeds.

    Orderly ends are in the slow ring: test_deaths and test_units play them too.
    """
    cells = [cell for cell in some_cells() if cell.death == death]

    assert {cell.moment for cell in cells} == set(MOMENTS)
    assert complaints(lab, cells) == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_deaths_with_the_other_back_ends_stay_within_the_bounds(lab: Lab, backend: str) -> None:
    """N4, N5, N14, I1, I4: those whose end differs most; the slow ring has the rest."""
    assert complaints(lab, few_cells(backend)) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cell_of_the_whole_matrix_hangs_or_leaves_anything(lab: Lab, backend: str) -> None:
    """N4, N5, N14, N18, I1, I4: every client in every moment with every death."""
    assert complaints(lab, list(all_cells(backend))) == {}
