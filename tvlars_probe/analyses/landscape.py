"""How does the loss look around a minimum, or between two?

A slice follows random directions. Their filters are scaled to the norms of the weights' filters (Li et al. 2018,
arXiv:1712.09913), so that widths can be compared between networks. A line joins the ends of two runs (Goodfellow et al.
2015). Its barrier tells whether they lie in one basin.
"""

from __future__ import annotations

import re
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
"""Columns of the table ``landscape`` that `analyse_landscape` needs."""

_ID_SUFFIX = re.compile(r"\.[0-9a-f]{6}$")
"""What a run_id adds to the name of the run's directory."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """One stored slice.

    Attributes:
        facts: what the run's manifest tells.
        verdict: the width of the minimum along the first direction, or the barrier between two runs.
        run2: name of the run at the line's other end; None for slices along directions.
        split: part of the data that the loss is of.
        bn_mode: how BatchNorm statistics were handled: interpolated or re-estimated.
        line: ``alpha``, ``loss`` and ``acc1`` of the points with β = 0.
        plane: ``alpha``, ``beta``, ``loss`` and ``acc1`` of all points; empty for one-dimensional slices.
        plane_reason: a sentence on the loss over the plane; empty where there is no plane.
    """

    facts: RunFacts
    verdict: Verdict
    run2: str | None
    split: str
    bn_mode: str
    line: pd.DataFrame
    plane: pd.DataFrame
    plane_reason: str


def analyse_landscape(rows: pd.DataFrame, facts: RunFacts, *, rise: float = 1.0, barrier: float = 0.1) -> Landscape:
    """Analyse the last slice on record.

    Args:
        rows: rows of the table ``landscape``, at least one.
        facts: what the run's manifest tells.
        rise: the width is that of the interval around α = 0 in which the loss rises by less than this.
        barrier: two runs lie in one basin if the loss between them rises less than this above the straight line
            through its values at both ends.
    """
    newest = rows.sort_values("created_at", kind="stable")["measurement_id"].iloc[-1]
    own = rows[rows["measurement_id"] == newest]
    first = own.iloc[0]
    run2 = None if pd.isna(first["run2"]) else _ID_SUFFIX.sub("", str(first["run2"]))
    columns = ["alpha", "loss", "acc1"]
    # β is null in one dimension. A plane holds the line of its first direction at β = 0.
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
        plane_reason=_over_plane(plane, rise) if len(plane) else "",
    )


def _width(line: pd.DataFrame, rise: float) -> Verdict:
    """The interval around the checkpoint in which the loss rises by less than ``rise``."""
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    centre = int(np.abs(alpha).argmin())
    at = Figure("loss", float(loss[centre]), "1", "loss at the checkpoint")
    if not np.isfinite(loss[centre]):
        return Verdict(QUESTION, CANT_TELL, f"the loss at the checkpoint is {loss[centre]:g}", (at,))
    if len(alpha) == 1:
        return Verdict(QUESTION, CANT_TELL, "the slice holds no point beside the checkpoint", (at,))
    level, ends = loss[centre] + rise, (float(-alpha[0]), float(alpha[-1]))
    # Both sides are read outwards from the checkpoint, the left one mirrored.
    left = _crossing(-alpha[centre::-1], loss[centre::-1], level)
    right = _crossing(alpha[centre:], loss[centre:], level)
    rose = np.isfinite([left, right])
    # A side on which the loss doesn't rise enough counts as far as the slice goes: the width is a lower bound then.
    least = sum(min(side, end) for side, end in zip((left, right), ends, strict=True))
    meaning = f"interval of α in which the loss rises by less than {rise:g}"
    figures = (
        Figure("width", least, "1", meaning)
        if rose.all()
        else Figure("least_width", least, "1", f"the slice's part of the {meaning}"),
        Figure("left", left if rose[0] else None, "1", f"how far below α = 0 the loss rises by {rise:g}"),
        Figure("right", right if rose[1] else None, "1", f"how far above α = 0 the loss rises by {rise:g}"),
        at,
    )
    if rose.all():
        reason = f"The loss rises by {rise:g} within α = −{left:.2g} to {right:.2g}: width {least:.2g}"
        return Verdict(QUESTION, f"{least:.3g}", reason, figures)
    if not rose.any():
        reason = f"The loss rises by less than {rise:g} on both sides, from α = −{ends[0]:.3g} to {ends[1]:.3g}"
        return Verdict(QUESTION, "wider than the slice", reason, figures)
    crossed, end = (f"−{left:.2g}", f"{ends[1]:.3g}") if rose[0] else (f"{right:.2g}", f"−{ends[0]:.3g}")
    reason = (
        f"The loss rises by {rise:g} at α = {crossed}, and by less on the other side, up to the slice's end at "
        f"α = {end}: width above {least:.3g}"
    )
    return Verdict(QUESTION, f"above {least:.3g}", reason, figures)


def _over_plane(plane: pd.DataFrame, rise: float) -> str:
    """What the loss does over the plane, in a sentence."""
    loss = plane["loss"].to_numpy(float)
    centre = loss[int((plane["alpha"] ** 2 + plane["beta"] ** 2).to_numpy(float).argmin())]
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return "The loss is finite nowhere on the plane"
    seen = f"Over the plane the loss goes from {finite.min():.3g} to {finite.max():.3g}"
    if np.isfinite(centre):
        share = float((loss < centre + rise).mean())
        seen += f" and rises by less than {rise:g} at {100 * share:.3g} % of the points"
    if len(finite) < len(loss):
        seen += f"; it is not finite at {len(loss) - len(finite)} of {len(loss)}"
    return seen


def _crossing(alpha: NDArray[np.float64], loss: NDArray[np.float64], level: float) -> float:
    """Where the loss first reaches the level, by linear interpolation; infinite where it never does."""
    # Not ``loss >= level``: a loss that is NaN counts as above.
    above = np.flatnonzero(~(loss < level))
    if not len(above) or above[0] == 0:
        return float("inf")
    i = above[0]
    if not np.isfinite(loss[i]):
        return float(alpha[i])  # nothing to interpolate to
    share = (level - loss[i - 1]) / (loss[i] - loss[i - 1])
    return float(alpha[i - 1] + share * (alpha[i] - alpha[i - 1]))


def _barrier(line: pd.DataFrame, barrier: float) -> Verdict:
    """The greatest height of the loss, between the runs, above the straight line through its values at both ends."""
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    # The runs are at α = 0 and 1; a line goes on beyond both.
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
        # At the ends themselves the loss is on the straight line, but for rounding, which is no height.
        most = "the loss is nowhere" if height < 1e-6 else f"the loss is at most {height:.2g}"
        reason = f"No barrier between them: {most} above the line through both ends"
        return Verdict(QUESTION_LINE, "one basin", reason, figures)
    return Verdict(
        QUESTION_LINE, "two basins", f"A barrier of {height:.3g} lies between them, at α = {at:.2g}", figures
    )
