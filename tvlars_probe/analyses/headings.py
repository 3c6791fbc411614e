"""Headings of the analyses' tables, on the terminal and on a report's page.

Each dictionary leads from a column's name to its heading. It also chooses the columns that are shown, and their order.
"""

from __future__ import annotations

LAYERS = {
    "parameter": "tensor", "adapted": "adapted", "start_over_settled": "start / settled ratio",
    "redundant_share": "redundant", "hot_steps": "hot steps", "full_rate_step": "full-rate ‖Δw‖/‖w‖",
    "overwritten_steps": "overwritten steps", "length": "needs steps",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.warmup.analysis.Warmup.layers`."""

EXPLOSIONS = {
    "parameter": "tensor", "quantity": "explosion of", "first_step": "first step", "peak_step": "peak step",
    "peak_over_median": "peak / later median", "recovery_steps": "steps to recover",
}  # fmt: skip
"""Headings of the table that `tvlars_probe.analyses.explosions.find_explosions` makes."""

SAMPLES = {
    "operator": "sharpness", "bn_mode": "BatchNorm", "split": "data", "engine": "engine", "samples": "samples",
    "draws": "draws", "is_curve": "makes the curve", "steps": "steps", "repeated": "measured again",
    "last_step": "last step", "value": "value there", "standard_error": "std. error of a mean", "low": "95 % from",
    "high": "to", "deviation": "std. deviation of a draw",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.minimizer.Minimizer.samples`."""

MINI_BATCH = {
    "measure": "along gradients and updates", "measurements": "measurements", "start": "start", "end": "end",
    "end_error": "std. error", "limit": "2/rate", "end_over_limit": "end / (2/rate)",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.mini_batch.MiniBatch.summary`."""

CORRELATION = {
    "measure": "end sharpness", "outcome": "with", "rho": "Spearman ρ", "low": "95 % from", "high": "to",
    "by_chance_share": "by chance", "runs": "runs", "why_no_interval": "no interval because",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.correlation.SharpnessCorrelation.table`."""


def warmup_cells(rate: str = "peak_lr") -> dict[str, str]:
    """Headings of `tvlars_probe.analyses.warmup.pairs.WarmupPairs.cells`, paired by the column ``rate``."""
    return {
        "optimizer": "optimizer", "data": "data", "model": "model", "batch_size": "batch",
        rate: rate.replace("_", " "), "seeds": "seeds", "outcome": "warm-up was", "gain": "gain (points)",
        "low": "95 % from", "high": "to", "without": "without (%)", "with": "with warm-up (%)",
        "diverged_without": "diverged without", "diverged_with": "diverged with",
    }  # fmt: skip


def pairs(side: str) -> dict[str, str]:
    """Headings of pairs of runs.

    Args:
        side: the field by which a pair's two runs are told: "method" or "run".
    """
    return {
        "peak_lr": "peak lr", "seed": "seed", f"{side}_without": "without", f"{side}_with": "with",
        "accuracy_without": "test acc (%)", "accuracy_with": "with warm-up (%)", "gain": "gain (points)",
    }  # fmt: skip


FINDINGS = {
    "run": "run", "rule": "rule", "findings": "findings", "first_step": "first step", "last_step": "last step",
    "parameter": "tensor", "text": "first finding",
}  # fmt: skip
"""Headings of the table of findings by rule."""

BATCH_SIZE = {
    "answer": "answer", "of": "of", "step": "step", "batch": "own batch", "told": "batch where more stops paying",
    "unit": "unit",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.batches.batch_size.BatchSizeAnswers.table`."""

COMPARISON = {
    "rate": "best peak lr", "mean": "test acc (%)", "low": "95 % from", "high": "to", "seeds": "seeds",
    "rates": "rates tried", "optimism": "too good by up to", "p": "p against the best", "runs": "runs",
    "diverged": "diverged",
}  # fmt: skip
"""Headings of the table of settings on a report's page, after its fields."""

WARMUP_RUNS = {
    "run": "run", "method": "method", "peak_lr": "peak lr", "seed": "seed", "answer": "warm-up needed?",
    "accuracy": "test acc (%)",
    "warmup_steps": "warm-up steps", "suggested_steps": "suggested", "set_by": "set by", "loss_rise": "loss rise",
    "redundant_share": "redundant",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.warmup.pairs.WarmupPairs.runs`."""

SHARPNESS = {
    "operator": "sharpness", "measurements": "measurements", "start": "start", "early_peak": "early peak",
    "peak_step": "at step", "end": "end", "end_over_peak": "end / peak", "trapped_steps": "steps held",
    "state": "state", "beyond_limit_share": "beyond its limit", "not_converged": "not converged", "on": "measured",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.minimizer.Minimizer.summary`."""

REPLAY = {
    "parameter": "tensor", "applied_ratio": "applied ratio", "replayed_ratio": "replayed ratio",
    "rate_quotient": "rate quotient", "lowest_quotient": "lowest", "highest_quotient": "highest", "rows": "rows",
    "cancelled_share": "flagged",
}  # fmt: skip
"""Headings of `tvlars_probe.analyses.replay.Replay.table`."""
