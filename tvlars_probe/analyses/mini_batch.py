"""Is SGD at the edge of stability that mini-batches obey?

*Batch sharpness* is the mean over mini-batches of the curvature along their own gradients. SGD without momentum settles
where it is 2/η, η being the learning rate, while the top eigenvalue λ₁ stays below (Andreyev and Beneventano 2024,
arXiv:2412.20553). So batch sharpness is what decides, and λ₁ beside it is a reference: where batches are small it lies
below 2/η without meaning that the rate is small.

The statement has a condition: SGD with one rate, without momentum, preconditioner, trust ratio or clipping, and
mini-batches of the run's own size. It is of the loss that SGD follows: with weight decay λ that is L + λ‖w‖²/2, whose
Hessian is H + λI and whose gradient g + λw. L alone is measured. Where λw is a small part of g, both directions are
nearly one, and λ is added to the figure; elsewhere it can't be told. Nothing is said of other optimizers.

*Critical sharpness* is 2/η_c for the rate η_c at which the update would raise the loss: above 2/η the update that was
made has raised it, whatever the optimizer. *Directional sharpness* is the curvature along that update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses import headings, one_sample
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.verdict import CANT_TELL, Figure, Verdict
from tvlars_probe.displays.displayed import ShownTable
from tvlars_probe.optimizers.group_entries import from_entry

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from tvlars_probe.analyses.facts import RunFacts

QUESTION = "Is it at the edge of stability of its mini-batches?"

MEASURES = ("batch_sharpness", "directional_sharpness", "critical_sharpness")
"""The measures of the table ``curvature`` that are read, beside the top eigenvalue of the Hessian."""

COLUMNS = ("batch_size", "low", "high")
"""Columns of the table ``curvature`` that are read, beside those that the sharpness of a minimum needs."""

STEP_COLUMNS = ("step", "lr", "grad_norm", "weight_norm")
"""Columns of the table ``steps`` that are read."""

AT_EDGE, BELOW, BEYOND = "at the edge", "below the edge", "beyond the edge"

NORMAL = 1.96
"""Standard errors on either side of a 95 % interval, where the trace has none."""

SMALL = 0.05
"""Up to this share of the batch's gradient weight decay leaves the direction of g + λw nearly that of g.

The curvature along it then changes by about 2·SMALL of gᵀHw/(‖g‖·‖w‖), half of what counts as near the edge.
"""

REFERENCE = "eigenvalue"
"""What the summary calls λ₁."""


@dataclass(frozen=True, kw_only=True, repr=False)
class MiniBatch(Answered):
    """Sharpness along gradients and updates, beside 2/η.

    Attributes:
        verdict: at the edge, below it, beyond it, or can't tell.
        curves: a row per measure and step: ``measure``, ``step``, ``value``, ``error`` (of batch sharpness the standard
            error over mini-batches), ``limit`` (2/η in that step; null where the rate isn't known), and the columns
            ``converged``, ``samples``, ``draws``, ``standard_error``, ``low``, ``high``.
        summary: a row per measure, and one of λ₁: ``measurements``, ``start``, ``end`` (mean of the late steps),
            ``end_error`` (its standard error over mini-batches), ``end_half_width`` (half of its 95 % interval),
            ``limit`` (mean of theirs), ``end_over_limit``.
    """

    verdict: Verdict
    curves: pd.DataFrame
    summary: pd.DataFrame

    def _tables(self) -> Iterable[ShownTable]:
        yield ShownTable.of_frame(self.summary, headings.MINI_BATCH, "Along gradients and updates")


def analyse_mini_batches(
    figures: pd.DataFrame,
    rates: pd.DataFrame,
    facts: RunFacts,
    mode: tuple[str | None, str | None],
    *,
    late: float,
    least: int,
    near: float,
) -> MiniBatch | None:
    """Compare batch sharpness with 2/η; None where neither it nor one along the update is on record in that mode.

    Args:
        figures: rows of ``curvature``, as `tvlars_probe.analyses.draws.over_draws` gives them.
        rates: the columns `STEP_COLUMNS` of the table ``steps``.
        facts: what the run's manifest tells.
        mode: BatchNorm mode and part of the data.
        late: share of the steps, up to the last, over which the end state is averaged.
        least: measurements that a verdict takes.
        near: at the edge is a mean within this share of 2/η. Where its 95 % interval is wider than twice that on
            either side, or holds 2/η itself of a mean that isn't, it can't be told.
    """
    whole = figures[figures["scope_kind"] == "all"]
    top = whole[(whole["measure"] == REFERENCE) & (whole["rank"] == 1) & (whole["operator"] == "hessian")]
    rows = pd.concat([whole[whole["measure"].isin(MEASURES)], top])
    if not rows["measure"].isin(MEASURES).any():
        return None
    curves, _ = one_sample.curves_of_one_sample(rows.assign(operator=rows["measure"]), mode)
    if curves.empty:
        return None  # all were measured in another mode, or on other data
    lr = rates.drop_duplicates("step", keep="last").set_index("step")["lr"]
    known = curves["step"].map(lr).astype(float)
    curves = curves.assign(limit=2 / known.where(known > 0))
    summary = pd.DataFrame([_summarise(str(name), group, late) for name, group in curves.groupby("measure")])
    columns = ["measure", "step", "value", "error", "converged", "limit", "samples", "draws", "standard_error", "low",
               "high"]  # fmt: skip
    return MiniBatch(
        verdict=_verdict(curves, summary, facts, _DecayBeside.of(rates, curves, facts, late), least=least, near=near),
        curves=curves.loc[curves["measure"] != REFERENCE, columns].reset_index(drop=True),
        summary=summary,
    )


@dataclass(frozen=True)
class _DecayBeside:
    """Weight decay beside the loss whose curvature was measured.

    Attributes:
        rate: λ, the largest of the parameter groups'.
        part: λ‖w‖/‖g‖ in the late steps, median; NaN where norms aren't on record.
    """

    rate: float
    part: float

    @classmethod
    def of(cls, rates: pd.DataFrame, curves: pd.DataFrame, facts: RunFacts, late: float) -> _DecayBeside:
        rates_of_groups = [entry.get("weight_decay") for entry in facts.groups]
        rate = max((float(one) for one in rates_of_groups if isinstance(one, int | float)), default=0.0)
        step = curves["step"].to_numpy(float)
        told = rates.reindex(columns=[*STEP_COLUMNS])
        told = told[told["step"] >= step.max() - late * (step.max() - step.min())]
        parts = rate * told["weight_norm"].astype(float) / told["grad_norm"].astype(float)
        return cls(rate, float(parts.median()))


def _summarise(measure: str, curve: pd.DataFrame, late: float) -> dict[str, object]:
    step = curve["step"].to_numpy(float)
    end = curve[step >= step[-1] - late * (step[-1] - step[0])]
    value, limit = end["value"].astype(float), end["limit"].astype(float)
    errors = end["standard_error"].astype(float).fillna(end["error"].astype(float))
    # Mini-batches of one sample are the same in all steps: their error isn't smaller for more steps.
    error = float(errors.mean()) if measure == MEASURES[0] else np.nan
    half = float((end["high"].astype(float) - end["low"].astype(float)).mean() / 2)
    return {
        "measure": measure,
        "measurements": len(curve),
        "start": float(curve["value"].iloc[0]),
        "end": float(value.mean()),
        "end_error": error,
        "end_half_width": half if np.isfinite(half) else NORMAL * error,
        "limit": float(limit.mean()),
        "end_over_limit": float((value / limit).mean()),
    }


def _verdict(
    curves: pd.DataFrame, summary: pd.DataFrame, facts: RunFacts, decay: _DecayBeside, *, least: int, near: float
) -> Verdict:
    rows = {str(row["measure"]): row for row in summary.to_dict("records")}
    batch, top = rows.get(MEASURES[0]), rows.get(REFERENCE)
    figures = [
        Figure(
            "batch_over_limit",
            _of(batch, "end_over_limit"),
            "1",
            "batch sharpness of the loss alone over 2/rate at the end, mean",
        ),
        Figure("batch_end", _of(batch, "end"), "1", "batch sharpness at the end, mean"),
        Figure("batch_end_error", _of(batch, "end_error"), "1", "its standard error, over mini-batches"),
        Figure("limit", _of(batch, "limit"), "1", "2/rate at the end, mean"),
        Figure("top_over_limit", _of(top, "end_over_limit"), "1", "top eigenvalue over 2/rate at the end, a reference"),
    ]
    told = tuple(figures)
    if batch is None:
        reason = "no batch sharpness is on record: train with --sharpness-measures eigenvalue batch."
        return Verdict(QUESTION, CANT_TELL, reason, told)
    if (why := _unmet(curves, facts, decay)) is not None:
        return Verdict(QUESTION, CANT_TELL, f"the limit 2/rate is that of SGD without momentum, and {why}.", told)
    limit = float(batch["limit"])
    share, error = float(batch["end_over_limit"]) + decay.rate / limit, float(batch["end_error"]) / limit
    if batch["measurements"] < least or not np.isfinite(share):
        reason = f"it takes {least} measurements of batch sharpness, at rates above 0."
        return Verdict(QUESTION, CANT_TELL, reason, told)
    doubt = f" ± {error:.2g}" if np.isfinite(error) else ""
    reference = f"; the top eigenvalue is at {top['end_over_limit']:.3g} of it" if top is not None else ""
    what = "batch sharpness" if not decay.rate else f"batch sharpness with the weight decay of {decay.rate:g}"
    reason = f"{what} ends at {share:.3g}{doubt} of 2/rate = {batch['limit']:.4g}{reference}"
    half, off = float(batch["end_half_width"]) / float(batch["limit"]), abs(share - 1)
    # Without an error, of a single mini-batch, no side is known either.
    if not half <= (2 * near if off <= near else off):
        width = f"its 95 % interval is {half:.2g} wide on either side" if np.isfinite(half) else "its error isn't known"
        more = "a larger sample has more mini-batches, and a smaller error."
        return Verdict(QUESTION, CANT_TELL, f"{reason}; {width}: {more}", told)
    answer = AT_EDGE if off <= near else BELOW if share < 1 else BEYOND
    if facts.batch_size is None:
        size = ", ".join(str(size) for size in _sizes(curves)) or "unknown size"
        reason += f"; that holds if the run's mini-batches are, as those measured, of {size}"
    return Verdict(QUESTION, answer, f"{reason}.", told)


def _of(row: dict[Hashable, Any] | None, name: str) -> float | None:
    return None if row is None else float(row[name])


def _unmet(curves: pd.DataFrame, facts: RunFacts, decay: _DecayBeside) -> str | None:
    """What of the statement's condition a run doesn't meet, in words; None where it meets all."""
    groups = [from_entry(group) for group in facts.groups]
    if not groups or not all(group.is_known for group in groups):
        return "what this run's optimizer does isn't known"
    name = groups[0].optimizer
    if any(group.momentum.form != "none" for group in groups):
        return f"this run's {name} has momentum"
    if any(group.preconditioner.kind != "none" or group.scaling.kind != "none" for group in groups):
        return f"this run's {name} scales the gradient by more than the rate"
    if any(group.maximize or group.max_grad_norm is not None for group in groups):
        return f"this run's {name} maximizes, or clips gradients"
    rates = {entry.get("lr") for entry in facts.groups} - {None}
    if len(rates) > 1:
        return f"this run's {name} has several rates"
    sizes = _sizes(curves)
    if facts.batch_size is not None and sizes != [facts.batch_size]:
        measured = ", ".join(str(size) for size in sizes) or "unknown size"
        return f"it was measured on mini-batches of {measured}, while the run's are of {facts.batch_size}"
    if decay.rate and not decay.part <= SMALL:
        how = "of unknown size" if np.isnan(decay.part) else f"{100 * decay.part:.2g} % as large"
        return f"it was measured of the loss alone, while weight decay adds λw to the gradient, {how} at the end"
    return None


def _sizes(curves: pd.DataFrame) -> list[int]:
    """Sizes of the mini-batches on which batch sharpness was measured."""
    told = curves.loc[curves["measure"] == MEASURES[0], "batch_size"] if "batch_size" in curves else pd.Series()
    return sorted({int(size) for size in told.dropna()})
