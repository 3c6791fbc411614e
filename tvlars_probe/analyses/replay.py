"""What trust ratio would another variant have given, at each recorded step?

A replay is a *one-step counterfactual*. Each step is taken as it was recorded, with the weights and gradients to which
the run's own optimizer had led; only this step's ratio is computed anew. A replay doesn't say where another optimizer
would have gone. The ratio is exact, because ‖g + λw‖² = ‖g‖² + 2λ⟨w, g⟩ + λ²‖w‖² needs only what a trace holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import AnsweredOfRun
from tvlars_probe.analyses.grid import column_medians
from tvlars_probe.analyses.verdict import Figure, Verdict
from tvlars_probe.displays.displayed import ShownTable
from tvlars_probe.errors import TraceError
from tvlars_probe.optimizers.registry import LAYERWISE, OPTIMIZERS
from tvlars_probe.optimizers.trust_ratios import trust_ratios

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid
    from tvlars_probe.analyses.variants import Variant

    Floats = NDArray[np.float64]

QUESTION = "What would that variant have done in each step?"

COLUMNS = ("step", "parameter", "weight_norm", "grad_norm", "weight_grad_dot", "trust_ratio", "lr")
"""Columns of the table ``layers`` that every replay needs."""

DIRECTION_COLUMNS = ("adam_norm", "weight_adam_dot")
"""Columns that a replay needs besides, if its variant scales a preconditioned direction."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Replay(AnsweredOfRun):
    """A variant's trust ratios beside the applied ones.

    Attributes:
        facts: what the run's manifest tells.
        variants: the settings that were replayed, per tensor; None where the recorded ratio stands.
        verdict: how far the variant's effective rates are from the applied ones.
        steps: the recorded steps, (T,).
        parameters: names of the tensors, (P,).
        applied: effective rate that was applied, lr × trust_ratio, (T, P).
        replayed: effective rate that the variant would have applied, (T, P).
        applied_ratio: trust ratio that was applied, (T, P).
        replayed_ratio: trust ratio of the variant, (T, P).
        cancelled: where ‖g + λw‖ <= ``cancellation``·(‖g‖ + λ‖w‖): the replayed number has lost digits there, (T, P).
        table: a row per tensor: the medians of both ratios; the median, lowest and highest quotient of the effective
            rates, replayed over applied; the number of rows, and the share of them that is flagged as cancelled. A
            quotient is infinite where only the applied rate is zero; the median leaves that out.
    """

    facts: RunFacts
    variants: tuple[Variant | None, ...]
    verdict: Verdict
    steps: NDArray[np.int64]
    parameters: tuple[str, ...]
    applied: Floats
    replayed: Floats
    applied_ratio: Floats
    replayed_ratio: Floats
    cancelled: NDArray[np.bool_]
    table: pd.DataFrame

    def _tables(self) -> Iterable[ShownTable]:
        yield ShownTable.of_frame(self.table, headings.REPLAY, "Tensors")

    def rows(self) -> pd.DataFrame:
        """A row per recorded step and tensor, in the order of steps."""
        at, which = np.nonzero(~np.isnan(self.applied))
        return pd.DataFrame(
            {
                "step": self.steps[at],
                "parameter": np.array(self.parameters, object)[which],
                "applied_ratio": self.applied_ratio[at, which],
                "replayed_ratio": self.replayed_ratio[at, which],
                "applied_rate": self.applied[at, which],
                "replayed_rate": self.replayed[at, which],
                "cancelled": self.cancelled[at, which],
            }
        )


def replay(
    grid: LayerGrid,
    facts: RunFacts,
    variants: Sequence[Variant | None],
    *,
    lr: Floats | None = None,
    cancellation: float = 0.05,
) -> Replay:
    """Compute the trust ratio that each tensor's variant gives at each recorded step.

    Args:
        grid: the columns `COLUMNS` of ``layers``; for LAMB and N-LAMB also `DIRECTION_COLUMNS`.
        facts: what the run's manifest tells.
        variants: the settings to replay, per tensor; None leaves the recorded ratio.
        lr: learning rates under another schedule, (T, P); by default the recorded ones.
        cancellation: a row is flagged if ‖g + λw‖ is at most this share of ‖g‖ + λ‖w‖.

    Raises:
        TraceError: the trace lacks what the variant needs, or holds another direction than the variant scales.
    """
    recorded_lr, there = grid["lr"].astype(np.float64), ~np.isnan(grid["weight_norm"])
    lr = recorded_lr if lr is None else np.where(np.isnan(recorded_lr), np.nan, lr)
    applied_ratio = grid["trust_ratio"].astype(np.float64)
    ratio, cancelled = applied_ratio.copy(), np.zeros(applied_ratio.shape, bool)
    shapes = dict(zip(facts.parameters["name"], facts.parameters["shape"], strict=True))
    # A shape that isn't told, NaN in a frame, counts as a matrix's.
    ndims = [len(shape) if isinstance(shape := shapes.get(name), list | tuple) else 2 for name in grid.parameters]
    adapted = np.zeros(len(ndims), bool)
    # Each variant once, for all its tensors together. If it has them all, a slice spares the copies.
    for variant in dict.fromkeys(variants):
        if variant is None:
            continue
        own, group = np.array([v == variant for v in variants], bool), variant.description
        chosen = slice(None) if own.all() else own
        sizes = [ndim for ndim, is_own in zip(ndims, own, strict=True) if is_own]
        adapted[chosen] = [bool(group.adapts(ndim)) for ndim in sizes]
        direction, dot = _direction(grid, facts, variant, chosen)
        found = trust_ratios(
            group,
            weight_norm=grid["weight_norm"][:, chosen].astype(np.float64),
            direction=direction,
            dot=dot,
            lr=lr[:, chosen],
            decay=np.array([group.decay_of(ndim) for ndim in sizes]),
            adapted=adapted[chosen],
            updates=grid.steps - facts.first_step + 1,  # φ counts the phase's updates from 1
        )
        ratio[:, chosen] = found.ratio
        # Where g and λw nearly cancel, the float32 numbers on record no longer tell ‖g + λw‖.
        cancelled[:, chosen] = (found.closeness <= cancellation) & adapted[chosen]
    ratio, cancelled = np.where(there, ratio, np.nan), cancelled & there
    with np.errstate(over="ignore", invalid="ignore"):
        applied, replayed = recorded_lr * applied_ratio, lr * ratio
    table = _table(grid.parameters, applied_ratio, ratio, applied, replayed, cancelled, there)
    return Replay(
        facts=facts,
        variants=tuple(variants),
        verdict=_verdict(table, applied, replayed, cancelled, there, adapted),
        steps=grid.steps,
        parameters=grid.parameters,
        applied=applied,
        replayed=replayed,
        applied_ratio=applied_ratio,
        replayed_ratio=ratio,
        cancelled=cancelled,
        table=table,
    )


def _direction(
    grid: LayerGrid, facts: RunFacts, variant: Variant, chosen: slice | NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """‖u‖ and ⟨w, u⟩ of the direction u that the variant scales, of the chosen tensors, (T, chosen) each.

    Raises:
        TraceError: the trace doesn't hold them.
    """
    is_preconditioned = variant.description.scaling.direction == "preconditioned"
    names = DIRECTION_COLUMNS if is_preconditioned else ("grad_norm", "weight_grad_dot")
    missing = [name for name in names if name not in grid.values or np.isnan(grid[name][:, chosen]).all()]
    if missing and len(grid.steps):
        raise TraceError(
            f"{facts.name} has no {' and '.join(missing)} in layers (recorded with {facts.optimizer}): "
            + (_only_from(variant) if is_preconditioned else "it can't be replayed")
        )
    if is_preconditioned:
        # LAMB and N-LAMB record different directions in the same columns.
        recorded = facts.descriptions_of(tuple(np.array(grid.parameters, object)[chosen]))
        if any(group.direction_rule != variant.description.direction_rule for group in recorded):
            raise TraceError(
                f"{facts.name} holds another direction (recorded with {facts.optimizer}): {_only_from(variant)}"
            )
    return grid[names[0]][:, chosen].astype(np.float64), grid[names[1]][:, chosen].astype(np.float64)


def _only_from(variant: Variant) -> str:
    """End of an error message: from which traces the variant can be replayed, and what to replay from this one."""
    others = [name for name in LAYERWISE if OPTIMIZERS[name].describe({}).scaling.direction == "gradient"]
    return (
        f"{variant.optimizer} can be replayed from traces of {OPTIMIZERS[variant.optimizer].class_name} only; replay "
        f"{' or '.join(others)}"
    )


def _table(
    parameters: tuple[str, ...],
    applied_ratio: Floats,
    ratio: Floats,
    applied: Floats,
    replayed: Floats,
    cancelled: NDArray[np.bool_],
    there: NDArray[np.bool_],
) -> pd.DataFrame:
    quotient = _quotient(applied, replayed)
    # fmin and fmax pass over NaN; ``initial`` gives them an answer where there are no steps.
    return pd.DataFrame(
        {
            "parameter": list(parameters),
            "applied_ratio": column_medians(np.where(there, applied_ratio, np.nan)),
            "replayed_ratio": column_medians(ratio),
            "rate_quotient": column_medians(quotient),
            "lowest_quotient": np.fmin.reduce(quotient, axis=0, initial=np.nan),
            "highest_quotient": np.fmax.reduce(quotient, axis=0, initial=np.nan),
            "rows": there.sum(axis=0),
            "cancelled_share": cancelled.sum(axis=0) / np.maximum(there.sum(axis=0), 1),
        }
    )


def _quotient(applied: Floats, replayed: Floats) -> Floats:
    """Replayed over applied rate; infinite where only the applied rate is zero, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return replayed / applied


def _verdict(
    table: pd.DataFrame,
    applied: Floats,
    replayed: Floats,
    cancelled: NDArray[np.bool_],
    there: NDArray[np.bool_],
    adapted: NDArray[np.bool_],
) -> Verdict:
    quotient = _quotient(applied, replayed)
    counted = ~cancelled & ~np.isnan(quotient)
    stopped = int((counted & (quotient == 0)).sum())
    started = int((counted & (applied == 0)).sum())
    infinite = int((counted & (applied != 0) & np.isinf(quotient)).sum())
    # |log q| is as large for a rate q times as low as for one q times as high.
    quotient = quotient[counted]
    factors = np.abs(np.log(quotient[(quotient > 0) & np.isfinite(quotient)]))
    largest = float(np.exp(factors.max())) if len(factors) else 1.0 if len(quotient) else np.nan
    scaled = table.loc[adapted if adapted.any() else slice(None), "rate_quotient"].dropna()
    median = float(scaled.median()) if len(scaled) else np.nan
    figures = (
        Figure(
            "rate_quotient", median, "1", "effective rate of the variant over the applied one, median adapted tensor"
        ),
        Figure("largest_factor", largest, "1", "largest factor between both, in either direction, unflagged rows"),
        Figure("stopped", stopped, "1", "unflagged rows in which only the variant's rate is zero"),
        Figure("started", started, "1", "unflagged rows in which only the applied rate is zero"),
        Figure("rows", int(there.sum()), "1", "rows of layers that were replayed"),
        Figure("cancelled", int(cancelled.sum()), "1", "rows flagged because ‖g + λw‖ nearly cancels"),
    )
    flagged = f"; {int(cancelled.sum())} of {int(there.sum())} rows are flagged: ‖g + λw‖ nearly cancels there"
    end = (flagged if cancelled.any() else "") + " (a one-step counterfactual)."
    if not len(quotient):
        reason = _why_nothing(applied, cancelled, there)
        return Verdict(QUESTION, "nothing to compare", f"{reason}{end}", figures)
    # Recorded numbers are float32: from them the run's own settings come back within 1e-4, and 1e-3 leaves room.
    if largest < 1 + 1e-3 and not stopped + started + infinite:
        return Verdict(QUESTION, "the same", f"no rate differs by more than {largest - 1:.1e} of itself{end}", figures)
    of = "adapted tensor" if adapted.any() else "tensor"
    times = "another" if np.isnan(median) else f"{median:.3g} times the applied one at the median {of}"
    said = [f"its effective rate is {times}"]
    if table["rate_quotient"].notna().any():
        with np.errstate(divide="ignore"):
            off = np.log(table["rate_quotient"]).abs()
        said.append(f"furthest off in {table.loc[off.idxmax(), 'parameter']}")
    if stopped:
        said.append(f"zero in {_rows(stopped)} where the applied one is not")
    if started:
        said.append(f"above zero in {_rows(started)} where the applied one is zero")
    if infinite:
        said.append(f"infinite in {_rows(infinite)}")
    if largest >= 1 + 1e-3:
        said.append(f"off by up to a factor of {largest:.3g} in single steps")
    answer = "another rate" if np.isnan(median) else f"{median:.3g} times the rate"
    return Verdict(QUESTION, answer, ", and ".join(filter(None, (", ".join(said[:-1]), said[-1]))) + end, figures)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _why_nothing(applied: Floats, cancelled: NDArray[np.bool_], there: NDArray[np.bool_]) -> str:
    if not there.any():
        return "no row of layers is on record"
    if cancelled[there].all():
        return "every recorded row is flagged"
    if np.isnan(applied).all():
        return "no recorded row tells the rate that was applied"
    return "no recorded row has a rate above zero that can be compared"
