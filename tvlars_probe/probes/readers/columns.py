"""The figures of a tensor in a step that come from the device, in the order of a reading's rows."""

from __future__ import annotations

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
"""Those that are known as soon as the step's rate is: all but ‖Δw‖."""

OPTIMIZER_SPECIFIC = frozenset({"direction_norm", "adam_norm", "weight_adam_dot", "trust_ratio", "phi"})
"""Those that only some optimizers fill: see `GroupDescription.columns`."""
