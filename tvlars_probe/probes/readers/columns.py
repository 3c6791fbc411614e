"""The columns of the table ``layers`` that are read from tensors, in the order of a reading's rows."""

from __future__ import annotations

# The order matters: a reading fills the first three rows together, and gets its last one after the update.
COLUMNS = (
    "weight_norm",
    "grad_norm",
    "weight_grad_dot",
    "direction_norm",
    "adam_norm",
    "weight_adam_dot",
    "trust_ratio",
    "phi",
    "update_norm",
)

BEFORE_UPDATE = COLUMNS[:-1]
"""The columns that don't need the updated weights: all but ‖Δw‖."""

SPECTRAL = (
    "weight_spectral_norm",
    "weight_spectral_norm_error",
    "update_spectral_norm",
    "update_spectral_norm_error",
)
"""The columns that few steps fill: of the weights, which are read before the update, then of the update."""

OPTIMIZER_SPECIFIC = frozenset({"direction_norm", "adam_norm", "weight_adam_dot", "trust_ratio", "phi"})
"""The columns that only some optimizers fill: see `GroupDescription.columns`."""
