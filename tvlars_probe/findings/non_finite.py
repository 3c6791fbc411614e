"""The first step, and the first tensor, that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.findings.rule import FindingRule
from tvlars_probe.findings.window import NORMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Window


def described(window: Window, row: int) -> dict[str, Any]:
    """What isn't finite in a step.

    Returns:
        step, loss, tensor and quantity. The tensor is the first one, in the order of the parameters, whose weights are
        not finite already; without such a one, the first whose gradient isn't. The quantity says which: weight_norm or
        grad_norm. Both are None where no recorded norm shows a tensor. Where several tensors went in that step, the
        list ``tensors`` names all of them.
    """
    loss = float(window.losses[row]) if window.told[row] else None
    found: dict[str, Any] = {"step": window.first_step + row, "loss": loss, "tensor": None, "quantity": None}
    for quantity in NORMS:
        bad = np.flatnonzero(window.active[row] & ~np.isfinite(window.figures[quantity][row]))
        if len(bad):
            names = [window.tensors.names[k] for k in bad.tolist()]
            found |= {"tensor": names[0], "quantity": quantity}
            return found | ({"tensors": names} if len(names) > 1 else {})
    return found


def first_non_finite(window: Window) -> dict[str, Any] | None:
    """What isn't finite in the first step that has something, as `described` tells it; None where all is finite.

    A norm that is finite but beyond float32 is none of these.
    """
    rows = np.flatnonzero(window.not_finite)
    return described(window, int(rows[0])) if len(rows) else None


class NonFinite(FindingRule):
    """The loss, or a tensor's weights or gradient, is NaN or infinite."""

    name = "non_finite"
    about = "the loss, a weight or a gradient is NaN or infinite"

    def __init__(self) -> None:
        self._is_open = False

    def find(self, window: Window) -> Iterator[Finding]:
        bad = window.not_finite
        judged = window.told | window.active.any(axis=1)
        if not bad.any():
            self._is_open &= not judged.any()
            return
        for row in np.flatnonzero(judged).tolist():
            if bad[row] and not self._is_open:
                yield self._found(window, row)
            self._is_open = bool(bad[row])

    def _found(self, window: Window, row: int) -> Finding:
        found = described(window, row)
        step, tensor, quantity = found["step"], found["tensor"], found["quantity"]
        if tensor is None:
            return self.finding(step, f"the loss is {found['loss']}", value=found["loss"], threshold=None)
        value = float(window.figures[quantity][row, window.tensors.names.index(tensor)])
        what = "the weights" if quantity == "weight_norm" else "the gradient"
        others = len(found.get("tensors", [tensor])) - 1
        more = f" (and of {others} other{'s' if others > 1 else ''})" if others else ""
        loss = "" if found["loss"] is None else f"; the loss is {found['loss']:.4g}"
        are = "aren't" if quantity == "weight_norm" else "isn't"
        text = f"{what} of {tensor}{more} {are} finite{loss}"
        return self.finding(step, text, parameter=tensor, value=value, threshold=None)

    def state(self) -> dict[str, Any]:
        return {"is_open": self._is_open}

    def load(self, state: dict[str, Any]) -> None:
        self._is_open = state["is_open"]
