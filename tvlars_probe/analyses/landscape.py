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

from tvlars_probe.analyses.answered import AnsweredOfRun
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "How wide is the minimum?"
QUESTION_LINE = "Do both runs lie in one basin?"

COLUMNS = ("measurement_id", "created_at", "step", "run2", "alpha", "beta", "loss", "acc1", "split", "bn_mode", "seed")
"""Columns of the table ``landscape`` that `analyse_landscape` needs."""

MOST_GAP = 0.25
"""How far apart the points between two runs may lie, in α, where it is said that no barrier lies between them."""

_ROUNDING = 1e-6
"""The loss is computed in float32: smaller shares of it are lost."""

_ID_SUFFIX = re.compile(r"\.[0-9a-f]{6}$")
"""What a run_id adds to the name of the run's directory."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Landscape(AnsweredOfRun):
    """One stored slice.

    Attributes:
        facts: what the run's manifest tells.
        verdict: the width of the minimum along the first direction, or the barrier between two runs. A figure that the
            points don't tell is None, and the reason says why; ``least_width`` and ``least_barrier`` hold all the same.
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


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a slice, in distances from the checkpoint.

    Attributes:
        sign: "−" below α = 0, "" above.
        least: distance up to which the loss is seen to stay below the level; 0 where the side has no point there.
        most: distance of the first point at or beyond the level; None where the loss doesn't reach it.
        at: where it reaches the level, by linear interpolation. None where it doesn't, and where the points don't tell:
            they do if the last one below the level lies at half the distance of the next one or beyond, and the loss
            is finite there. Then ``at`` is right within a factor of two, whatever the loss does in between.
        is_finite: whether the loss is finite at ``most``.
    """

    sign: str
    least: float
    most: float | None
    at: float | None
    is_finite: bool

    @classmethod
    def of(cls, sign: str, distance: NDArray[np.float64], loss: NDArray[np.float64], level: float) -> _Side:
        """Read a side outwards; its first point is the checkpoint."""
        # Not ``loss >= level``: a loss that is NaN counts as beyond.
        beyond = np.flatnonzero(~(loss < level))
        if not len(beyond):
            return cls(sign, float(distance[-1]), None, None, is_finite=True)
        i = beyond[0]
        least, most, is_finite = float(distance[i - 1]), float(distance[i]), bool(np.isfinite(loss[i]))
        if not is_finite or most > 2 * least * (1 + 1e-9):
            return cls(sign, least, most, None, is_finite)
        share = (level - loss[i - 1]) / (loss[i] - loss[i - 1])
        return cls(sign, least, most, least + float(share) * (most - least), is_finite)

    @property
    def told(self) -> float:
        """The side's part of the width, or its lower bound."""
        return self.least if self.at is None else self.at

    @property
    def in_words(self) -> str:
        """Where the loss reaches the level, as far as the points tell."""
        if self.at is not None:
            return f"it rises so far at α = {self.sign}{self.at:.2g}"
        if self.most is not None:
            first = f"{self.sign}{self.least:.3g}" if self.least else "0"
            how = "" if self.is_finite else ", where it isn't finite"
            return f"it rises so far between α = {first} and {self.sign}{self.most:.3g}{how}"
        if not self.least:
            return f"no point lies {'below' if self.sign else 'above'} α = 0"
        return f"it doesn't up to α = {self.sign}{self.least:.3g}"


def _width(line: pd.DataFrame, rise: float) -> Verdict:
    """The interval around the checkpoint in which the loss rises by less than ``rise``."""
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    centre = _place(alpha, 0.0)
    if centre is None:
        return Verdict(QUESTION, CANT_TELL, "the slice doesn't hold the checkpoint, at α = 0")
    at = Figure("loss", float(loss[centre]), "1", "loss at the checkpoint")
    level = loss[centre] + rise
    if not np.isfinite(level):
        return Verdict(QUESTION, CANT_TELL, f"the loss at the checkpoint is {loss[centre]:g}", (at,))
    if rise < _ROUNDING * abs(loss[centre]):
        reason = f"beside a loss of {loss[centre]:.3g} at the checkpoint, rounding hides a rise by {rise:g}"
        return Verdict(QUESTION, CANT_TELL, reason, (at,))
    if len(alpha) == 1:
        return Verdict(QUESTION, CANT_TELL, "the slice holds no point beside the checkpoint", (at,))
    # Both sides are read outwards from the checkpoint, the left one mirrored.
    left = _Side.of("−", np.abs(alpha[centre::-1]), loss[centre::-1], level)
    right = _Side.of("", np.abs(alpha[centre:]), loss[centre:], level)
    least, meaning = left.told + right.told, f"interval of α in which the loss rises by less than {rise:g}"
    is_told = left.at is not None and right.at is not None
    width = Figure("width", least if is_told else None, "1", meaning)
    bound = Figure("least_width", least, "1", f"the slice's part of the {meaning}")
    figures = (
        *((width,) if is_told else (bound, width)),
        Figure("left", left.at, "1", f"how far below α = 0 the loss rises by {rise:g}"),
        Figure("right", right.at, "1", f"how far above α = 0 the loss rises by {rise:g}"),
        at,
    )
    return Verdict(QUESTION, *_answer(left, right, rise), figures)


def _answer(left: _Side, right: _Side, rise: float) -> tuple[str, str]:
    """The answer on the width, and its reason."""
    least = left.told + right.told
    if left.at is not None and right.at is not None:
        reason = f"The loss rises by {rise:g} within α = −{left.at:.2g} to {right.at:.2g}: width {least:.2g}"
        return f"{least:.3g}", reason
    sides = (left, right)
    open_ends = [side for side in sides if side.most is None and side.least > 0]
    if len(open_ends) == 2:
        reason = f"The loss rises by less than {rise:g} on both sides, from α = −{left.least:.3g} to {right.least:.3g}"
        return "wider than the slice", reason
    crossed = [side for side in sides if side.at is not None]
    if crossed and open_ends:
        side, end = crossed[0], open_ends[0]
        reason = (
            f"The loss rises by {rise:g} at α = {side.sign}{side.at:.2g}, and by less on the other side, up to the "
            f"slice's end at α = {end.sign}{end.least:.3g}: width above {least:.3g}"
        )
        return f"above {least:.3g}", reason
    reason = f"No width for a rise of the loss by {rise:g}: {left.in_words}, and {right.in_words}"
    if any(side.most is not None and side.at is None for side in sides):
        reason += "; take more --points, or a smaller --span"
    return f"above {least:.3g}" if least > 0 else CANT_TELL, reason


def _place(alpha: NDArray[np.float64], at: float) -> int | None:
    """The index of the point at that α, but for rounding; None where there is none."""
    if not len(alpha):
        return None
    nearest = int(np.abs(alpha - at).argmin())
    return nearest if abs(alpha[nearest] - at) <= 1e-9 * np.ptp(alpha) else None


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


def _barrier(line: pd.DataFrame, barrier: float) -> Verdict:
    """The greatest height of the loss, between the runs, above the straight line through its values at both ends."""
    alpha, loss = line["alpha"].to_numpy(float), line["loss"].to_numpy(float)
    places = _place(alpha, 0.0), _place(alpha, 1.0)
    lacking = [at for at, place in enumerate(places) if place is None or not np.isfinite(loss[place])]
    if lacking or places[0] is None or places[1] is None:
        where = " and ".join(f"α = {at}" for at in lacking)
        return Verdict(QUESTION_LINE, CANT_TELL, f"there is no finite loss at {where}, where a run lies")
    # The line goes on beyond both runs.
    a, between = alpha[places[0] : places[1] + 1], loss[places[0] : places[1] + 1]
    there, scale = np.isfinite(between), max(abs(between[0]), abs(between[-1]))
    if barrier < _ROUNDING * scale:
        reason = f"beside a loss of {scale:.3g} at one end, rounding hides a barrier of {barrier:g}"
        return Verdict(QUESTION_LINE, CANT_TELL, reason)
    above = np.where(there, between - (between[0] + a * (between[-1] - between[0])), -np.inf)
    height, at, gap = float(above.max()), float(a[above.argmax()]), float(np.diff(a).max())
    bad = f"the loss isn't finite at {len(a) - int(there.sum())} of {len(a)} points between the runs"
    figures: tuple[Figure, ...] = (
        Figure("barrier", height if there.all() else None, "1", "highest loss above the line through both ends"),
        Figure("at", at if there.all() else None, "1", "where"),
    )
    if height >= barrier:
        reason = f"A barrier of {height:.3g} lies between them, at α = {at:.2g}"
        if not there.all():
            figures = (Figure("least_barrier", height, "1", "the same where the loss is finite"), *figures)
            reason = f"A barrier of at least {height:.3g} lies between them, at α = {at:.2g}; {bad}"
        return Verdict(QUESTION_LINE, "two basins", reason, figures)
    if not there.all():
        return Verdict(QUESTION_LINE, CANT_TELL, bad, figures)
    if gap > MOST_GAP * (1 + 1e-9):
        reason = f"points between the runs lie up to {gap:.2g} apart, and a barrier may hide there: take more --points"
        return Verdict(QUESTION_LINE, CANT_TELL, reason, figures)
    # At the ends themselves the loss is on the straight line, but for rounding, which is no height.
    most = "the loss is nowhere" if height < 1e-6 else f"the loss is at most {height:.2g}"
    reason = f"No barrier between them: {most} above the line through both ends"
    return Verdict(QUESTION_LINE, "one basin", reason, figures)
