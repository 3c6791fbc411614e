"""LARS, TVLARS and LAMB written down as their papers (and other libraries) do, one tensor at a time, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def norm(x: Array) -> float:
    return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


def lars_ratio(
    w: Array, g: Array, *, eta: float, decay: float, denominator: str = "decayed", factor: float = 1.0,
    cap: float = np.inf,
) -> float:  # fmt: skip
    """eta·φ·‖w‖ over the denominator of that name; 1 where either norm is zero."""
    below = {
        "decayed": norm(g + decay * w),
        "sum": norm(g) + decay * norm(w),
        "grad": norm(g),
    }[denominator]
    if norm(w) == 0 or below == 0:
        return 1.0
    return eta * factor * min(norm(w), cap) / min(below, cap)


def lars_step(w: Array, g: Array, mu: Array, *, lr: float, momentum: float, decay: float, ratio: float) -> Array:
    """One step; ``mu`` is updated in place, the new weights returned."""
    mu *= momentum
    mu += ratio * (g + decay * w)
    return w - lr * mu


def lamb_step(
    w: Array, g: Array, m: Array, v: Array, *, lr: float, betas: tuple[float, float], eps: float, decay: float,
    adam: bool = False,
) -> tuple[Array, float]:  # fmt: skip
    """One step of LAMB without bias correction; the moments are updated in place. Returns weights and ratio."""
    m *= betas[0]
    m += (1 - betas[0]) * g
    v *= betas[1]
    v += (1 - betas[1]) * g**2
    d = m / (np.sqrt(v) + eps) + decay * w
    ratio = 1.0 if adam or norm(w) == 0 or norm(d) == 0 else min(norm(w), 10.0) / norm(d)
    return w - lr * ratio * d, ratio
