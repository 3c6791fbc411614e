"""What charts of sharpness say of the runs that they show: operators, BatchNorm mode, data and sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.analyses.correlation import mode_of_most
from tvlars_probe.analyses.draws import sample_text
from tvlars_probe.analyses.wording import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tvlars_probe.analyses.minimizer import Minimizer

OPERATORS = {
    "hessian": "sharpness λ₁(H)",
    "relative": "relative sharpness (tensors scaled by their norm)",
    "adaptive": "adaptive sharpness (of the outputs, free of scale)",
    "effective": "effective sharpness (grey: limit of stability)",
    "ggn": "sharpness of the Gauss-Newton matrix",
    "batch_sharpness": "batch sharpness: along mini-batches' gradients (grey: 2/rate)",
    "directional_sharpness": "directional sharpness: along the update (grey: 2/rate)",
    "critical_sharpness": "critical sharpness: where the update raises the loss (grey: 2/rate)",
}
"""The panels of `sharpness_curves` from top to bottom, by operator."""

OF = {
    "hessian": "the Hessian",
    "relative": "the relative Hessian",
    "effective": "the effective Hessian",
    "ggn": "the Gauss-Newton matrix",
    "adaptive": "the adaptive operator",
}
"""What each operator is called in a sentence."""


def same_mode(results: Sequence[Minimizer]) -> list[Minimizer]:
    """The results that have the BatchNorm mode and the data of most results with sharpness on record."""
    mode = mode_of_most(results)
    return [r for r in results if mode is not None and (r.bn_mode, r.split) == mode]


def measured_on(rows: pd.DataFrame) -> str:
    """What the rows were measured on, each size of sample and number of draws once."""
    told = rows[["samples", "draws"]].drop_duplicates()
    texts = [sample_text(size, draws, "a") for size, draws in told.itertuples(index=False)]
    return " and ".join(texts)


def left_out_of(results: Sequence[Minimizer], shown: Sequence[Minimizer]) -> list[str]:
    """Names of the runs that aren't shown."""
    return [r.facts.name for r in results if not any(r is one for one in shown)]


def sharpness_subtitle(
    results: Sequence[Minimizer],
    on: str,
    mode: tuple[str | None, str | None] | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """Which runs are shown, on which data and sample (``on``), in which BatchNorm mode (``mode``, or the curves')."""
    first = results[0]
    bn_mode, split = mode or (first.bn_mode, first.split)
    who = f"{first.facts.name}: {first.facts.method}" if len(results) == 1 else f"{len(results)} runs"
    of = f"{who}; loss on {split} data, {on}, BatchNorm mode {bn_mode}"
    if not left_out:
        return of
    return f"{of}; left out, as measured in another mode: {some_of(left_out, most=3)}"
