"""Analysed runs with warm-up and without, of norms that are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.synthetic import lars_facts, layers, losses, warm
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.warmup.analysis import Warmup, analyse_warmup

T, W = 100, 20
FALLING = np.linspace(2.3, 0.1, T)


def judged(
    ratio: dict[str, np.ndarray],
    *,
    warmup: int = W,
    loss: np.ndarray = FALLING,
    biases: dict[str, float] | None = None,
    accuracy: float | None = None,
    **facts: Any,
) -> Warmup:
    """A run whose norm ratios ‖w‖/‖g‖ are given; biases have a constant ‖g‖/‖w‖."""
    biases, count = biases or {}, len(loss)
    names = (*ratio, *biases)
    weight = {name: np.ones(count) for name in names}
    grad = {name: 1 / r for name, r in ratio.items()} | {name: np.full(count, g) for name, g in biases.items()}
    lr = warm(count, warmup) if warmup else np.ones(count)
    frame = layers(weight, grad, lr, biases=tuple(biases))
    told = lars_facts(names, biases=tuple(biases), **facts)
    return analyse_warmup(LayerGrid.from_frame(frame), losses(loss), told, accuracy=accuracy)


def grouped(rates: dict[str, np.ndarray], **facts: Any) -> Warmup:
    """A run of adapted tensors at ratio 4, and of "bias" with ‖g‖/‖w‖ = 3, each with a rate of its own."""
    biases = tuple(name for name in rates if name == "bias")
    grads = {name: np.full(T, 3.0 if name == "bias" else 0.25) for name in rates}
    frame = layers({name: np.ones(T) for name in rates}, grads, np.ones(T), biases=biases)
    for name, rate in rates.items():
        frame.loc[frame["parameter"] == name, ["lr", "update_norm"]] *= rate.astype(np.float32)[:, None]
    told = lars_facts((*rates,), biases=biases, **facts)
    return analyse_warmup(LayerGrid.from_frame(frame.dropna(subset="lr"), rates), losses(FALLING), told)
