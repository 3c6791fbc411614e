"""How many samples a batch of any form has."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """The length of the first dimension of a batch's first tensor; None where it has none.

    Args:
        batch: a tensor, or a mapping or sequence of them, however deep.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    values = getattr(batch, "values", None)  # a table's are no method
    parts = values() if callable(values) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in parts if (found := samples_in(part)) is not None), None)
