"""The figures of every layer that heat maps show, by name: columns of ``layers``, or what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.analyses.grid import norm_ratio

if TYPE_CHECKING:
    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid, Matrix
    from tvlars_probe.analyses.source import Source

_COLUMNS = {
    "lnr": ("weight_norm", "grad_norm"),
    "relative_update": ("weight_norm", "update_norm"),
    "update_rms": ("weight_norm", "update_norm"),
    "weight_spectral_norm": ("weight_norm", "weight_spectral_norm"),
    "update_spectral_norm": ("weight_norm", "update_spectral_norm"),
}
"""The columns that a figure is read from; for any other it is the column of its name."""


def layer_figure(quantity: str, source: Source) -> tuple[LayerGrid, Matrix]:
    """One figure of every layer.

    Args:
        quantity: a column of ``layers``; "lnr", ‖w‖/‖g‖; "relative_update", ‖Δw‖/‖w‖; or "update_rms", ‖Δw‖/√n of a
            tensor of n elements.
        source: of the run.

    Returns:
        the layers with the columns that were read, and the figure, (T, P). Of what isn't read in every recorded step
        (‖Δw‖ of large models, spectral norms) the steps are left out in which no layer has it. Not those in which no
        weight is finite: there it is lost.
    """
    columns = _COLUMNS.get(quantity, (quantity,))
    if quantity not in _COLUMNS or quantity == "lnr":
        grid = source.layers(columns)
        return grid, norm_ratio(grid) if quantity == "lnr" else grid[quantity]
    # Two: quotients in float64 take the room of two columns.
    grid = _where_read(source.layers(columns, beside=2), columns[-1])
    return grid, _derived(quantity, grid, source.facts)


def _where_read(grid: LayerGrid, column: str) -> LayerGrid:
    """The grid without the steps in which ``column`` wasn't read."""
    # Null and NaN are one in a matrix: of a step whose weights aren't finite, a missing figure is no choice.
    there = ~np.isnan(grid[column])
    weights = grid["weight_norm"][:, there.any(axis=0)]
    lost = weights.size > 0 and ~np.isfinite(weights).any(axis=1)
    kept = np.logical_or(there.any(axis=1), lost)
    return grid if kept.all() else grid.of_steps(kept)


def _derived(quantity: str, grid: LayerGrid, facts: RunFacts) -> Matrix:
    if quantity == "update_rms":
        sizes = dict(zip(facts.parameters["name"], facts.parameters["numel"], strict=True))
        numbers = np.array([sizes.get(name, np.nan) for name in grid.parameters], np.float64)
        rms: Matrix = grid["update_norm"] / np.sqrt(numbers)
        return rms
    if quantity == "relative_update":
        # In float64, where the quotient of two float32 numbers has its place.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Matrix = grid["update_norm"].astype(np.float64) / grid["weight_norm"]
        return ratio
    return grid[quantity]
