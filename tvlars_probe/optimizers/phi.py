"""TVLARS' time-varying factor φ, without torch, so that recorded steps can be replayed anywhere."""

from __future__ import annotations

import math


def phi(t: float, *, lmbda: float, alpha: float = 0.1, delay: float = 0.0, gamma_min: float = 0.0) -> float:
    """φ_t = 1 / (alpha + exp(lmbda·(t − delay))) + gamma_min, the factor that takes warm-up's place in TVLARS.

    From arXiv:2309.14053; the released code is the case alpha = 0.1, delay = 0, gamma_min = 0. It falls from about
    1/alpha + gamma_min (long before ``delay``) over 1/(alpha + 1) + gamma_min (at ``delay``) to gamma_min.

    Args:
        t: index of the update, counted from 1.
        lmbda: delay factor λ, per update.
        alpha: bounds the factor at its start.
        delay: d_e, in updates.
        gamma_min: the floor.

    Returns:
        φ_t, in double precision and without overflow at any t.

    >>> phi(1, lmbda=0.001)
    0.9082612534408295
    >>> phi(10**9, lmbda=0.05)
    0.0
    """
    exponent = lmbda * (t - delay)
    if exponent > 0:
        shrunk = math.exp(-exponent)
        return shrunk / (alpha * shrunk + 1.0) + gamma_min
    return 1.0 / (alpha + math.exp(exponent)) + gamma_min
