"""The names under which figures are sent. They follow Composer's OptimizerMonitor where that has the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS = {
    "loss": "loss/train",
    "lr": "lr/group0",
    "phi": "phi/group0",
    "grad_norm": "l2_norm/grad/global",
    "weight_norm": "l2_norm/param/global",
    "grad_norm_before_clipping": "l2_norm/grad_before_clipping/global",
    "clip_scale": "clip_scale",
    "samples": "time/sample",
    "tokens": "time/token",
    "epoch": "time/epoch",
    "step_seconds": "time/step_seconds",
    "probe_seconds": "time/probe_seconds",
}
"""By column of the table ``steps``; the most wanted first."""

RATIO = "update_norm/weight_norm"
"""Stands for the quotient of the two columns, ‖Δw‖/‖w‖."""

LAYERS = {
    "trust_ratio": "trust_ratio",
    "grad_norm": "l2_norm/grad",
    "weight_norm": "l2_norm/param",
    RATIO: "l2_norm_ratio/update_param",
    "update_norm": "l2_norm/update",
    "direction_norm": "l2_norm/direction",
    "adam_norm": "l2_norm/adam",
    "weight_grad_dot": "dot/param_grad",
    "weight_adam_dot": "dot/param_adam",
    "phi": "phi",
    "lr": "lr",
    "weight_spectral_norm": "spectral_norm/param",
    "weight_spectral_norm_error": "spectral_norm_error/param",
    "update_spectral_norm": "spectral_norm/update",
    "update_spectral_norm_error": "spectral_norm_error/update",
}
"""By column of the table ``layers``, or `RATIO`: what stands before the tensor's name."""

QUANTITIES = ("trust_ratio", "grad_norm", "weight_norm", RATIO)
"""What is sent of layers by default."""

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}

_TAKEN = {"global", "group0"}
"""Stand for totals where a tensor's name would stand."""


def of_layer(column: str, parameter: str) -> str:
    """The name of a tensor's figure."""
    return f"{LAYERS[column]}/{parameter}{' (tensor)' if parameter in _TAKEN else ''}"


def of_quantile(column: str, quantile: str) -> str:
    """The name of a quantile over layers."""
    return f"quantiles/{LAYERS[column]}/{quantile}"


def of_epoch(column: str) -> str:
    """The name of a column of the table ``epochs``: ``metrics/test/acc1`` for ``test_acc1``."""
    part, _, figure = column.rpartition("_")
    return f"metrics/{part}/{figure}" if part else f"time/epoch_{column}"


def of_curvature(row: Mapping[str, Any], column: str = "value") -> str:
    """The name of a figure of the table ``curvature``.

    Args:
        row: operator, measure, rank, scope and draw of the figure.
        column: "value", or "limit" for the value beyond which a quadratic diverges.
    """
    words = ["curvature", row.get("operator"), "limit" if column == "limit" else row.get("measure")]
    if column == "value" and row.get("rank") is not None:
        words.append(row["rank"])
    if row.get("scope") not in (None, "all"):
        words.append(row["scope"])
    if row.get("draw"):
        words.append(f"draw{row['draw']}")
    return "/".join(str(word) for word in words if word is not None)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings without nesting: ``{"optimizer": {"lr": 1}}`` becomes ``{"optimizer.lr": 1}``; None is left out."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}.")
        elif value is not None:
            found[f"{before}{name}"] = value
    return found
