"""Steps for rules to look at: as rows by the oracle's names, and as the windows of any number of flushes."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.oracles.findings import Row
from tvlars_probe.findings.inspector import Inspector
from tvlars_probe.findings.window import Tensors, Window
from tvlars_probe.optimizers.description_words import Phi, Scaling
from tvlars_probe.optimizers.group_description import GroupDescription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.findings.finding import Finding

FIGURES = ("weight_norm", "grad_norm", "update_norm", "trust_ratio", "direction_norm", "phi", "lr")

NAMES = ("conv.weight", "conv.bias", "fc.weight", "fc.bias")
DIMS = (4, 1, 2, 1)

SOUND = {
    "weight_norm": 2.0, "grad_norm": 0.5, "update_norm": 0.01, "trust_ratio": 0.004, "direction_norm": 0.5,
    "phi": math.nan, "lr": 1.0,
}  # fmt: skip
"""Figures in which no rule finds anything."""


def tensors(*, phi: bool = False, rounding: float = 2**-24, **scaling: Any) -> Tensors:
    """`NAMES` under an optimizer whose trust ratio spares vectors."""
    words = Scaling(kind="trust-ratio", spares_vectors=True, phi=Phi(lmbda=1e-3) if phi else None, **scaling)
    described = GroupDescription(optimizer="X", scaling=words)
    return Tensors.of(list(NAMES), [described] * len(NAMES), DIMS, [rounding] * len(NAMES))


def rows_of(count: int) -> list[Row]:
    """Steps of a sound run."""
    return [
        Row(loss=1.0 + 0.1 * math.sin(k), grad_norm=1.0 + 0.1 * math.cos(k), figures={n: dict(SOUND) for n in NAMES})
        for k in range(count)
    ]


def window_of(rows: Sequence[Row], first_step: int, about: Tensors) -> Window:
    shape = len(rows), len(about.names)
    figures = {name: np.full(shape, np.nan) for name in FIGURES}
    active = np.zeros(shape, dtype=bool)
    for k, row in enumerate(rows):
        for j, name in enumerate(about.names):
            if name in row.figures:
                active[k, j] = True
                for figure, value in row.figures[name].items():
                    figures[figure][k, j] = value
    return Window(
        first_step=first_step,
        losses=np.array([0.0 if row.loss is None else row.loss for row in rows]),
        told=np.array([row.loss is not None for row in rows], dtype=bool),
        grad_norms=np.array([row.grad_norm for row in rows]),
        before_clipping=np.array([row.before_clipping for row in rows], dtype=bool),
        phi=np.array([row.phi for row in rows]),
        active=active,
        lr=figures.pop("lr"),
        figures=figures,
        tensors=about,
        batches=np.array([row.batch for row in rows]),
        gradient_square=np.array([row.signal for row in rows]),
        noise_trace=np.array([row.noise for row in rows]),
    )


def inspected(
    rows: Sequence[Row], about: Tensors, rules: Sequence[str], flushes: Sequence[int] = (), resumes: bool = False
) -> list[Finding]:
    """What rules find in these steps.

    Args:
        rows: the steps.
        about: what is known of the tensors.
        rules: their ids.
        flushes: the steps before which a flush ends; without any there is one at the end.
        resumes: whether each flush is looked at by another inspector, that goes on from the state of the one before.
    """
    inspector, found = Inspector(rules), []
    edges = [0, *sorted({*flushes} - {0, len(rows)}), len(rows)]
    for first, last in itertools.pairwise(edges):
        if resumes and first:
            state, inspector = inspector.state(), Inspector(rules)
            inspector.load(state)
        found += inspector.inspect(window_of(rows[first:last], first, about))
    return found
