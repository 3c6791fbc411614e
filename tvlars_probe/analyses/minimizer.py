"""Did the run fall into a sharp minimum, and did it get out again?

*Sharpness* is the largest eigenvalue of the loss's Hessian on a fixed sample; Keskar et al. 2017 link it to large
batches. By itself it can't tell. Rescalings that leave the function as it is move it at will (Dinh et al. 2017). And it
falls as the loss does, since the curvature of cross-entropy vanishes where the outputs are large: with outputs three
times as large a run seems to have escaped. *Relative* sharpness, for which each tensor is scaled by its norm, is proof
against the first, where all of a tensor is rescaled, and not against the second. *Adaptive* sharpness is proof against
both (`tvlars_probe.curvature.adaptive`): it alone decides, by ratios of its own values (`sharp_phase`).

*Effective* sharpness is that of the steps really taken. Beyond its limit the oscillation on a quadratic
grows (Cohen et al. 2021, 2022). For mini-batch runs the limit is a reference line without a verdict: what they obey is
said by batch sharpness, where that is on record (`mini_batch`).

All of it is said of the sample that was measured on, or of the mean over several draws of that size (`draws`). A curve
holds one of them (`one_sample`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import draws, headings, mini_batch, one_sample
from tvlars_probe.analyses.answered import AnsweredOfRun
from tvlars_probe.analyses.chance import has_learned
from tvlars_probe.analyses.sharp_phase import REMEDY, SharpPhase, figures_of, reason_of, sharp_phase
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.analyses.wording import some_of
from tvlars_probe.displays.displayed import ShownTable
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.mini_batch import MiniBatch

QUESTION = "Is it trapped in a sharp minimum?"

COLUMNS = (
    "measurement_id", "step", "phase", "measure", "operator", "scope", "scope_kind", "rank", "value", "error",
    "converged", "split", "bn_mode", "samples", "limit",
)  # fmt: skip
"""Columns of the table ``curvature`` that `analyse_minimizer` needs, beside those of `draws`."""

SPECTRUM_COLUMNS = ("step", "phase", "operator", "scope", "grid", "density", "error", "split", "bn_mode")
"""Columns of the table ``spectrum`` that `analyse_minimizer` needs, beside those of `draws`."""

CURVE_COLUMNS = (
    "step", "operator", "value", "error", "converged", "limit", "samples", "draws", "standard_error", "low", "high",
)  # fmt: skip
"""Columns of `Minimizer.curves`."""

BLOCK_COLUMNS = (
    "step", "operator", "scope", "scope_kind", "value", "error", "split", "bn_mode", "samples", "draws",
    "standard_error",
)  # fmt: skip
"""Columns of `Minimizer.blocks`."""

FURTHER_COLUMNS = (
    "step", "measure", "operator", "scope", "epsilon", "dimensions", "value", "error", "split", "bn_mode", "samples",
    "draws", "standard_error",
)  # fmt: skip
"""Columns of `Minimizer.further`."""

GIVEN = "given"
"""The split of figures on data that the function of ``--model`` gave: no part of the run's data."""

DECIDING = "adaptive"
"""The operator whose curve decides."""

BESIDE = {"hessian": "raw", "relative": "relative"}
"""Operators whose figures are given beside a verdict, and what they are called there."""


@dataclass(frozen=True, kw_only=True)
class SharpnessRule:
    """Thresholds of the rule. None of them is from a paper.

    Attributes:
        early: the early peak is the highest sharpness in this first share of the range of measured steps; of adaptive
            sharpness it is the top of the rise that counts, at any step.
        late: the end state is the median over this last share of that range; the last value always counts.
        escaped: f. A rise to 1/f times the lowest value so far is a sharp phase; a curve that ends below f times the
            top of it has escaped.
        least: fewest measurements of a curve with which its state is told.
        near: batch sharpness whose mean over the late steps is within this share of 2/rate is at the edge.

    Raises:
        UserError: a threshold is outside its range.
    """

    early: float = 0.5
    late: float = 0.2
    escaped: float = 0.5
    least: int = 5
    near: float = 0.2

    def __post_init__(self) -> None:
        for name in ("early", "late"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name):g} is outside its range (allowed: a share from 0 to 1)")
        if not 0 < self.near < 1:
            raise UserError(f"near={self.near:g} is outside its range (allowed: a share above 0, below 1)")
        if not 0 < self.escaped <= 1:
            raise UserError(f"--escaped {self.escaped:g} is outside its range (allowed: a share above 0, up to 1)")
        if self.least < 1:
            raise UserError(f"least={self.least} is too few (allowed: 1 or more measurements)")


@dataclass(frozen=True, kw_only=True, repr=False)
class Minimizer(AnsweredOfRun):
    """What the curvature on record says of a run.

    Attributes:
        facts: what the run's manifest tells.
        verdict: trapped, escaped, never sharp, or can't tell.
        bn_mode: BatchNorm mode of the curves and the verdict; modes are never joined.
        split: part of the data that their loss is of; parts are never joined either.
        other_modes: the other pairs of BatchNorm mode and split on record, left out of curves and verdict.
        curves: a row per operator and step, of the whole model: ``value``, ``error``, ``converged``, ``limit``,
            ``samples``. Where draws were made the value is their mean, and ``draws``, ``standard_error``, ``low`` and
            ``high`` are as `tvlars_probe.analyses.draws.over_draws` gives them. Each curve is of one sample.
        samples: a row per operator and sample on record, in any mode, as
            `tvlars_probe.analyses.one_sample.curves_of_one_sample` gives them.
        summary: a row per operator: ``early_peak``, ``peak_step``, ``end``, ``end_over_peak``, ``trapped_steps``,
            ``state`` (of operators that don't decide: can't tell), and ``on``, the words for its sample. A step from
            the peak on is trapped if it lies between two successive measurements of which both are at least
            `SharpnessRule.escaped` times the peak.
        blocks: top eigenvalues of single layers and tensors, a row per step and block; like the two below, in any mode.
        further: traces and epsilon-sharpness.
        mini_batch: batch, directional and critical sharpness beside 2/rate; None where none of them is on record.
        spectrum: the spectral densities, the latest of a step, over draws their mean.
    """

    facts: RunFacts
    verdict: Verdict
    bn_mode: str | None
    split: str | None
    other_modes: tuple[tuple[str, str], ...]
    curves: pd.DataFrame
    samples: pd.DataFrame
    summary: pd.DataFrame
    blocks: pd.DataFrame
    further: pd.DataFrame
    mini_batch: MiniBatch | None
    spectrum: pd.DataFrame

    def _tables(self) -> Iterable[ShownTable]:
        yield ShownTable.of_frame(self.summary, headings.SHARPNESS, "Sharpness")
        yield from () if self.mini_batch is None else self.mini_batch._tables()

    @property
    def on(self) -> str:
        """What the curves were measured on, in words: "on this sample of 128", "mean of 10 samples of 128"."""
        texts = dict(zip(self.summary["operator"], self.summary["on"], strict=True)) if len(self.summary) else {}
        return _joined(texts)


def analyse_minimizer(
    curvature: pd.DataFrame,
    spectrum: pd.DataFrame,
    facts: RunFacts,
    *,
    rates: pd.DataFrame | None = None,
    accuracy: float | None = None,
    bn_mode: str | None = None,
    rule: SharpnessRule | None = None,
) -> Minimizer:
    """Tell whether a run is trapped in a sharp minimum.

    Args:
        curvature: the columns `COLUMNS` of the table ``curvature``, and of those of `draws` what there is.
        spectrum: the columns `SPECTRUM_COLUMNS` of the table ``spectrum``, likewise.
        facts: what the run's manifest tells.
        rates: the columns `mini_batch.STEP_COLUMNS` of the table ``steps``.
        accuracy: the last test accuracy in percent, where there is one.
        bn_mode: BatchNorm mode to read; by default the one with the most measured steps.
        rule: thresholds of the rule.
    """
    limits = rule or SharpnessRule()
    figures, densities = draws.over_draws(curvature), draws.densities_over_draws(spectrum)
    for rows in (figures, densities):
        rows["split"] = rows["split"].astype(object).fillna(GIVEN)  # null in all rows is no column of strings
    mode, others = _choose_mode(figures, bn_mode)
    eigenvalues = figures[(figures["measure"] == "eigenvalue") & (figures["rank"] == 1)]
    whole = eigenvalues["scope_kind"] == "all"
    curves, samples = one_sample.curves_of_one_sample(eigenvalues[whole], mode)
    phase = _phase_of(curves, limits)
    summary = pd.DataFrame(
        [_summarise(str(n), group, phase if n == DECIDING else None, limits) for n, group in curves.groupby("operator")]
    )
    elsewhere = ("eigenvalue", *mini_batch.MEASURES)
    return Minimizer(
        facts=facts,
        verdict=_verdict(summary, phase, facts, accuracy, mode[0], limits),
        bn_mode=mode[0],
        split=mode[1],
        other_modes=others,
        curves=curves[list(CURVE_COLUMNS)],
        samples=samples,
        summary=summary,
        blocks=eigenvalues.loc[~whole, list(BLOCK_COLUMNS)].reset_index(drop=True),
        further=figures.loc[~figures["measure"].isin(elsewhere), list(FURTHER_COLUMNS)].reset_index(drop=True),
        mini_batch=mini_batch.analyse_mini_batches(
            figures,
            pd.DataFrame(columns=list(mini_batch.STEP_COLUMNS)) if rates is None else rates,
            facts,
            mode,
            late=limits.late,
            least=limits.least,
            near=limits.near,
        ),
        spectrum=densities[[*SPECTRUM_COLUMNS, "samples", "draws"]],
    )


def _choose_mode(
    curvature: pd.DataFrame, wanted: str | None
) -> tuple[tuple[str | None, str | None], tuple[tuple[str, str], ...]]:
    """The pair of BatchNorm mode and split to read, and the other pairs on record.

    It is the one in which most steps have the sharpness that decides; of equals, that with the most measured steps.
    """
    decides = (curvature["measure"] == "eigenvalue") & (curvature["operator"] == DECIDING)
    steps = pd.DataFrame({"deciding": curvature["step"].where(decides), "all": curvature["step"]})
    counts = steps.groupby([curvature["bn_mode"], curvature["split"]]).nunique()
    counts = counts.sort_values(["deciding", "all"], ascending=False, kind="stable")
    modes = [(str(mode), str(split)) for mode, split in counts.index]
    chosen = [mode for mode in modes if wanted in (None, mode[0])]
    if not chosen:
        # No row has the split None: the curves are empty, rather than of a mode that wasn't asked for.
        return (wanted, None), tuple(modes)
    return chosen[0], tuple(mode for mode in modes if mode != chosen[0])


def _phase_of(curves: pd.DataFrame, rule: SharpnessRule) -> SharpPhase | None:
    """The sharp phase of the curve that decides; None where it isn't on record."""
    curve = curves[curves["operator"] == DECIDING]
    if curve.empty:
        return None
    # Over draws the mean's interval is what may leave the answer open.
    half = (curve["high"].astype(float) - curve["low"].astype(float)) / 2
    doubt = np.where(curve["draws"] > 1, half, curve["error"].astype(float))
    step, value = curve["step"].to_numpy(np.float64), curve["value"].to_numpy(np.float64)
    return sharp_phase(step, value, doubt, late=rule.late, least=rule.least, escaped=rule.escaped)


def _summarise(operator: str, curve: pd.DataFrame, phase: SharpPhase | None, rule: SharpnessRule) -> dict[str, object]:
    """Early peak and end state of one curve; ``phase`` is that of the curve that decides."""
    step, value = curve["step"].to_numpy(float), curve["value"].to_numpy(float)
    first, last = step[0], step[-1]
    early = step <= first + rule.early * (last - first)
    late = step >= last - rule.late * (last - first)
    told = ~np.isnan(value)  # argmax would pick a NaN, and a median would become one
    peak = int(np.where(early & told, value, -np.inf).argmax())
    if phase is not None and np.isfinite(phase.top_step):
        peak = int((step == phase.top_step).argmax())
    end = float(np.median(value[late & told])) if (late & told).any() else np.nan
    # No share can be taken of a peak at or below zero: the loss then curves upwards in no direction.
    share = end / value[peak] if value[peak] > 0 else np.nan
    above = (step >= step[peak]) & (value >= rule.escaped * value[peak])
    # Nothing is known between measurements: a stretch counts only if both of its ends are above the line.
    held = np.diff(step)[above[:-1] & above[1:]].sum()
    limit = curve["limit"].to_numpy(float)
    return {
        "operator": operator,
        "measurements": len(value),
        "start": value[0],
        "early_peak": value[peak],
        "peak_step": int(step[peak]),
        "end": end,
        "end_over_peak": share,
        "trapped_steps": int(held),
        "state": CANT_TELL if phase is None else phase.state,
        "beyond_limit": float((value > limit).mean()) if np.isfinite(limit).any() else None,
        "not_converged": int(curve["not_converged"].sum()),
        "on": draws.sample_text(curve["samples"].iloc[-1], int(curve["draws"].iloc[-1])),
    }


def _joined(texts: dict[str, str]) -> str:
    """What operators were measured on, told once where it is the same for all."""
    one = {*texts.values()}
    return one.pop() if len(one) == 1 else ", ".join(f"{name} {text}" for name, text in texts.items())


def _verdict(
    summary: pd.DataFrame,
    phase: SharpPhase | None,
    facts: RunFacts,
    accuracy: float | None,
    bn_mode: str | None,
    rule: SharpnessRule,
) -> Verdict:
    """What the sharp phase says, and the figures of the other operators beside it."""
    rows = {str(row["operator"]): row for row in summary.to_dict("records")}
    beside = [
        Figure(f"{label}_{column}", float(rows[name][column]) if name in rows else None, "1", meaning.format(label))
        for name, label in BESIDE.items()
        for column, meaning in (
            ("end_over_peak", "{} sharpness at the end over its early peak"),
            ("early_peak", "highest {} sharpness in the early part"),
            ("end", "{} sharpness at the end, median"),
        )
    ]
    figures = (*figures_of(phase), *beside)
    if phase is None:
        return Verdict(QUESTION, CANT_TELL, _remedy([*rows], bn_mode, rule.least), figures)
    if (why := _in_no_minimum(facts, accuracy)) is not None:
        return Verdict(QUESTION, CANT_TELL, why, figures)
    on = str(rows[DECIDING]["on"])
    return Verdict(QUESTION, phase.state, reason_of(phase, on, least=rule.least, escaped=rule.escaped), figures)


def _in_no_minimum(facts: RunFacts, accuracy: float | None) -> str | None:
    """Why a run is in no minimum, as a sentence; None where nothing speaks against it."""
    if facts.status == "diverged":
        return "the run diverged: it is in no minimum."
    chance = facts.chance
    if chance is None or accuracy is None or has_learned(accuracy, chance):
        return None
    return (
        f"the run has learned next to nothing (test accuracy {accuracy:.3g} %, by chance {chance:.3g} %): it is in no "
        "minimum."
    )


def _remedy(measured: list[str], bn_mode: str | None, least: int) -> str:
    """What to do where the sharpness that decides isn't on record."""
    if not measured:
        return f"no sharpness is on record: train with --sharpness-every, or run {REMEDY}."
    return (
        f"only {some_of(measured)} sharpness is on record, which a change of scale moves: {REMEDY} "
        f"--bn {bn_mode} tells, where {least} checkpoints or more are kept; so does training with --sharpness-every."
    )
