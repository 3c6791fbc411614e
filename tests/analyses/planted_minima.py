"""Runs of which it is known whether they are in a sharp minimum, and that may be rescaled from a step on.

Sharpness is planted by two hidden units that are alike, and whose outgoing weights ±a cancel each other: the outputs
are as before, but now a small share of a weight moves them a lot.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import sample
from tests.curvature.rescalings import at_temperature, built
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.minimizer import COLUMNS, SPECTRUM_COLUMNS, Minimizer, analyse_minimizer

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = (0, 10, 20, 30, 40, 50, 60)

COURSES = {
    "trapped": (0, 0, 3, 3, 3, 3, 3),
    "escaped": (0, 0, 3, 3, 0, 0, 0),
    "never sharp": (0, 0, 0, 0, 0, 0, 0),
}
"""By the answer a at each step."""

MOMENTS = {"always": 0, "from the middle on": 30, "at the end": 60}
"""First step of a rescaling."""

TEMPERATURE = "temperature"
"""In place of a change of weights: outputs multiplied within the loss."""


def with_cancelling_units(model: Any, a: float) -> None:
    """Make two units before the last layer alike, and give them outgoing weights that cancel."""
    inner, norm, last = _around_last(model)
    for p in (*inner.parameters(), *norm):
        p[1] = p[0]
    width = last.in_features // len(inner.weight)  # more than one where a channel has several pixels
    last.weight[:, :width] += a
    last.weight[:, width : 2 * width] -= a


def _around_last(model: Any) -> tuple[Any, list[nn.Parameter], Any]:
    """The layer with the hidden units, the parameters of their BatchNorm, and the last layer."""
    if not isinstance(model, nn.Sequential):
        return model.value, [], model.head
    layers = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-2], [p for m in model if isinstance(m, nn.BatchNorm2d) for p in m.parameters()], layers[-1]


@cache
def figures(
    network: str, a: float, change: Callable[[Any, float], None] | str | None, c: float
) -> tuple[tuple[str, float, float], ...]:
    """Operator, top eigenvalue and its error of one state."""
    model = built(network)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    with torch.no_grad():
        with_cancelling_units(model, a)
        if callable(change):
            change(model, c)
        elif change == TEMPERATURE:
            loss = at_temperature(c)
    found = tvlars_probe.sharpness(
        model, loss, sample(), operators=("hessian", "relative", "adaptive"), bn_mode="train", tol=1e-6
    )
    return tuple((m.operator, m.value, m.error) for m in found.measurements)


def analysed(
    network: str,
    course: str,
    change: Callable[[Any, float], None] | str | None = None,
    c: float = 1.0,
    moment: str = "always",
) -> Minimizer:
    """The analysis of a run, rescaled from a moment on."""
    rows = [
        {"step": step, "operator": operator, "value": value, "error": error}
        for step, a in zip(STEPS, COURSES[course], strict=True)
        for operator, value, error in figures(network, a, change if step >= MOMENTS[moment] else None, c)
    ]
    told = {
        "measurement_id": "m", "phase": "train", "measure": "eigenvalue", "scope": "all", "scope_kind": "all",
        "rank": 1, "converged": True, "split": "train", "bn_mode": "train", "samples": 24, "limit": np.nan,
    }  # fmt: skip
    frame = pd.DataFrame(rows).assign(**told)[list(COLUMNS)]
    return analyse_minimizer(frame, pd.DataFrame(columns=list(SPECTRUM_COLUMNS)), RunFacts(name="planted"))
