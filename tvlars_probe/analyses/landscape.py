"""How does the loss look around a minimum, or between two?

Slices along random directions whose filters are scaled to the norm of the weights' filters (Li et al. 2018,
arXiv:1712.09913), so that widths can be compared between networks; or the straight line between the ends of two runs
(Goodfellow et al. 2015), whose barrier tells whether they lie in one basin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "How wide is the minimum?"
QUESTION_LINE = "Do both runs lie in one basin?"

COLUMNS = ("measurement_id", "created_at", "step", "run2", "alpha", "beta", "loss", "acc1", "split", "bn_mode", "seed")


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """One stored slice.

    Attributes:
        facts: of the run.
        verdict: width of the minimum along the first direction, or the barrier between two runs.
        run2: name of the run at the line's other end; None for slices along directions.
        split: part of the data.
        bn_mode: how BatchNorm statistics were handled.
        line: ``alpha``, ``loss``, ``acc1`` where beta is 0.
        plane: ``alpha``, ``beta``, ``loss``, ``acc1``; empty for one-dimensional slices.
        spacing: distance of grid points along alpha and beta.
    """

    facts: RunFacts
    verdict: Verdict
    run2: str | None
    split: str
    bn_mode: str
    line: pd.DataFrame
    plane: pd.DataFrame
    spacing: tuple[float, float]


def analyse_landscape(rows: pd.DataFrame, facts: RunFacts, *, rise: float = 1.0, barrier: float = 0.1) -> Landscape:
    """Read the last slice stored.

    Args:
        rows: of the table ``landscape``, at least one.
        facts: of the run.
        rise: the width is that of the interval around α = 0 in which the loss rises by less than this.
        barrier: two runs lie in one basin if the loss between them exceeds the line through its ends by less than
            this.
    """
    newest = rows.sort_values("created_at", kind="stable")["measurement_id"].iloc[-1]
    own = rows[rows["measurement_id"] == newest]
    first = own.iloc[0]
    run2 = None if pd.isna(first["run2"]) else str(first["run2"])
    columns = ["alpha", "loss", "acc1"]
    flat = own[own["beta"].fillna(0.0) == 0.0].sort_values("alpha")[columns].reset_index(drop=True)
    plane = (
        own[["alpha", "beta", "loss", "acc1"]]
        if own["beta"].notna().any()
        else own.iloc[:0][["alpha", "beta", "loss", "acc1"]]
    )
    verdict = _barrier(flat, barrier) if run2 is not None else _width(flat, rise)
    return Landscape(
        facts=facts,
        verdict=verdict,
        run2=run2,
        split=str(first["split"]),
        bn_mode=str(first["bn_mode"]),
        line=flat,
        plane=plane.reset_index(drop=True),
        spacing=(_spacing(own["alpha"]), _spacing(own["beta"])),
    )


def _spacing(values: pd.Series[float]) -> float:
    steps = np.diff(np.unique(values.dropna()))
    return float(np.median(steps)) if len(steps) else 1.0


def _width(line: pd.DataFrame, rise: float) -> Verdict:
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    centre = int(np.abs(alpha).argmin())
    level = loss[centre] + rise
    right, left = (
        _crossing(alpha[centre:], loss[centre:], level),
        _crossing(-alpha[centre::-1], loss[centre::-1], level),
    )
    figures = (
        Figure("width", right + left, "1", f"interval of α in which the loss rises by less than {rise:g}"),
        Figure("loss", float(loss[centre]), "1", "loss at the checkpoint"),
    )
    if not np.isfinite(right + left):
        reason = f"The loss rises by less than {rise:g} within the slice, up to α = {np.abs(alpha).max():.3g}"
        return Verdict(QUESTION, "wider than the slice", reason, figures)
    reason = f"The loss rises by {rise:g} within α = −{left:.2g} to {right:.2g}: width {right + left:.2g}"
    return Verdict(QUESTION, f"{right + left:.3g}", reason, figures)


def _crossing(alpha: NDArray[np.float64], loss: NDArray[np.float64], level: float) -> float:
    """Where the loss first passes the level, by linear interpolation; infinite if nowhere."""
    above = np.flatnonzero(~(loss < level))
    if not len(above) or above[0] == 0:
        return float("inf")
    i = above[0]
    if not np.isfinite(loss[i]):
        return float(alpha[i])
    share = (level - loss[i - 1]) / (loss[i] - loss[i - 1])
    return float(alpha[i - 1] + share * (alpha[i] - alpha[i - 1]))


def _barrier(line: pd.DataFrame, barrier: float) -> Verdict:
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    inside = (alpha >= 0) & (alpha <= 1)
    if not inside.any() or not np.isfinite(loss[inside]).all():
        return Verdict(QUESTION_LINE, CANT_TELL, "the loss isn't finite everywhere between the runs")
    a, between = alpha[inside], loss[inside]
    chord = between[0] + (a - a[0]) / max(a[-1] - a[0], 1e-12) * (between[-1] - between[0])
    height = float((between - chord).max())
    at = float(a[(between - chord).argmax()])
    figures = (
        Figure("barrier", height, "1", "highest loss above the line through both ends"),
        Figure("at", at, "1", "where"),
    )
    if height < barrier:
        # Rounding leaves something at the ends themselves.
        most = "the loss is nowhere" if height < 1e-6 else f"the loss is at most {height:.2g}"
        reason = f"No barrier between them: {most} above the line through both ends"
        return Verdict(QUESTION_LINE, "one basin", reason, figures)
    return Verdict(
        QUESTION_LINE, "two basins", f"A barrier of {height:.3g} lies between them, at α = {at:.2g}", figures
    )
