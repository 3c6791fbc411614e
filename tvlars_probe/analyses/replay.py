"""What trust ratio would another variant have given, at each recorded step?

A *one-step counterfactual*: each step is taken as it was recorded, with the weights and gradients that the run's own
optimizer had led to, and only this step's ratio is computed anew. It doesn't say where another optimizer would have
gone. It is exact because ‖g + λw‖² = ‖g‖² + 2λ⟨w, g⟩ + λ²‖w‖² needs only what a trace holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses.grid import column_medians
from tvlars_probe.analyses.verdict import Figure, Verdict
from tvlars_probe.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid
    from tvlars_probe.analyses.variants import Variant

    Floats = NDArray[np.float64]

QUESTION = "What would that variant have done in each step?"

COLUMNS = ("step", "parameter", "weight_norm", "grad_norm", "weight_grad_dot", "trust_ratio", "lr")
LAMB_COLUMNS = ("adam_norm", "weight_adam_dot")


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """A variant's trust ratios beside the applied ones.

    Attributes:
        facts: of the run.
        variant: that was replayed.
        verdict: how different it is.
        steps: (T,).
        parameters: (P,).
        applied: effective rate that was applied, lr × trust_ratio, (T, P).
        replayed: effective rate that the variant would have applied, (T, P).
        applied_ratio: trust ratio that was applied, (T, P).
        replayed_ratio: the variant's, (T, P).
        cancelled: where ‖g + λw‖ <= ``cancellation``·(‖g‖ + λ‖w‖): the replayed number has lost digits there, (T, P).
        table: a row per tensor: medians of both ratios, the median, lowest and highest quotient of the effective
            rates (replayed over applied), rows, and the share of them that is flagged as cancelled.
    """

    facts: RunFacts
    variant: Variant
    verdict: Verdict
    steps: NDArray[np.int64]
    parameters: tuple[str, ...]
    applied: Floats
    replayed: Floats
    applied_ratio: Floats
    replayed_ratio: Floats
    cancelled: NDArray[np.bool_]
    table: pd.DataFrame

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
    variant: Variant,
    *,
    rate: Callable[[int], float] | None = None,
    cancellation: float = 0.05,
) -> Replay:
    """Compute the variant's trust ratio at each recorded step and tensor.

    Args:
        grid: the columns `COLUMNS` of ``layers``; for LAMB also `LAMB_COLUMNS`.
        facts: of the run.
        variant: the settings to replay.
        rate: learning rate of the n-th update (from 0) under another schedule; by default the recorded rates.
        cancellation: share below which a row is flagged.

    Raises:
        TraceError: LAMB is asked of a trace that no LAMB run recorded.
    """
    direction, dot = _direction(grid, facts, variant)
    weight_norm = grid["weight_norm"].astype(np.float64)
    updates = grid.steps - facts.first_step + 1
    recorded_lr = grid["lr"].astype(np.float64)
    lr = recorded_lr
    if rate is not None:
        lr = np.where(np.isnan(recorded_lr), np.nan, np.array([rate(int(t) - 1) for t in updates])[:, None])
    shapes = dict(zip(facts.parameters["name"], facts.parameters["shape"], strict=True))
    flat = np.array([len(shapes.get(name, (1, 1))) <= 1 for name in grid.parameters], bool)
    ratio, closeness = variant.trust_ratio(
        weight_norm=weight_norm, direction=direction, dot=dot, lr=lr, updates=updates, one_dimensional=flat
    )
    there = np.isfinite(grid["weight_norm"]) | np.isinf(grid["weight_norm"])
    ratio = np.where(there, ratio, np.nan)
    cancelled = there & (closeness <= cancellation) & variant.adapts(flat)
    applied_ratio = grid["trust_ratio"].astype(np.float64)
    applied, replayed = recorded_lr * applied_ratio, lr * ratio
    table = _table(grid.parameters, applied_ratio, ratio, applied, replayed, cancelled, there)
    return Replay(
        facts=facts,
        variant=variant,
        verdict=_verdict(table, applied, replayed, cancelled, there),
        steps=grid.steps,
        parameters=grid.parameters,
        applied=applied,
        replayed=replayed,
        applied_ratio=applied_ratio,
        replayed_ratio=ratio,
        cancelled=cancelled,
        table=table,
    )


def _direction(grid: LayerGrid, facts: RunFacts, variant: Variant) -> tuple[Floats, Floats]:
    names = LAMB_COLUMNS if variant.optimizer == "lamb" else ("grad_norm", "weight_grad_dot")
    missing = [name for name in names if name not in grid.values or np.isnan(grid[name]).all()]
    if missing and len(grid.steps):
        raise TraceError(
            f"{facts.name} has no {' and '.join(missing)} in layers (recorded with {facts.optimizer}): "
            + (
                "lamb can be replayed from traces of LAMB only; replay lars or tvlars"
                if variant.optimizer == "lamb"
                else "it can't be replayed"
            )
        )
    return grid[names[0]].astype(np.float64), grid[names[1]].astype(np.float64)


def _table(
    parameters: tuple[str, ...],
    applied_ratio: Floats,
    ratio: Floats,
    applied: Floats,
    replayed: Floats,
    cancelled: NDArray[np.bool_],
    there: NDArray[np.bool_],
) -> pd.DataFrame:
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = replayed / applied
    finite = np.where(np.isfinite(quotient), quotient, np.nan)
    return pd.DataFrame(
        {
            "parameter": list(parameters),
            "applied_ratio": column_medians(applied_ratio),
            "replayed_ratio": column_medians(ratio),
            "rate_quotient": column_medians(finite),
            "lowest_quotient": np.fmin.reduce(finite, axis=0, initial=np.nan),
            "highest_quotient": np.fmax.reduce(finite, axis=0, initial=np.nan),
            "rows": there.sum(axis=0),
            "cancelled_share": cancelled.sum(axis=0) / np.maximum(there.sum(axis=0), 1),
        }
    )


def _verdict(
    table: pd.DataFrame, applied: Floats, replayed: Floats, cancelled: NDArray[np.bool_], there: NDArray[np.bool_]
) -> Verdict:
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.abs(np.log(replayed / applied))[~cancelled]
    difference = difference[np.isfinite(difference)]
    largest = float(np.exp(difference.max())) if len(difference) else np.nan
    quotients = table["rate_quotient"].dropna()
    median = float(quotients.median()) if len(quotients) else np.nan
    figures = (
        Figure("rate_quotient", median, "1", "effective rate of the variant over the applied one, median"),
        Figure("largest_factor", largest, "1", "largest factor between both, in either direction, unflagged rows"),
        Figure("rows", int(there.sum()), "1", "rows of layers that were replayed"),
        Figure("cancelled", int(cancelled.sum()), "1", "rows flagged because ‖g + λw‖ nearly cancels"),
    )
    flagged = f"; {int(cancelled.sum())} of {int(there.sum())} rows are flagged: ‖g + λw‖ nearly cancels there"
    end = (flagged if cancelled.any() else "") + " (a one-step counterfactual)."
    if np.isnan(largest):
        return Verdict(QUESTION, "nothing to compare", f"no recorded row has a rate above zero{end}", figures)
    if largest < 1 + 1e-3:
        return Verdict(QUESTION, "the same", f"no rate differs by more than {largest - 1:.1e} of itself{end}", figures)
    where = table.loc[(np.log(table["rate_quotient"]).abs()).idxmax(), "parameter"]
    return Verdict(
        QUESTION,
        f"{median:.3g} times the rate",
        f"its effective rate is {median:.3g} times the applied one at the median tensor, furthest off in {where}, and "
        f"off by up to a factor of {largest:.3g} in single steps{end}",
        figures,
    )
