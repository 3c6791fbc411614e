"""TVLARS' time-varying factor φ. It needs no torch, so that recorded steps can be replayed without it."""

from __future__ import annotations

import math


def phi(t: float, *, lmbda: float, alpha: float = 0.1, delay: float = 0.0, gamma_min: float = 0.0) -> float:
    """φ_t = 1 / (alpha + exp(lmbda·(t − delay))) + gamma_min, the factor that takes warm-up's place in TVLARS.

    The formula is that of arXiv:2309.14053; the released code is the case alpha = 0.1, delay = 0, gamma_min = 0. Where
    lmbda > 0, φ falls from about 1/alpha + gamma_min, long before ``delay``, to gamma_min; at ``delay`` it is
    1/(alpha + 1) + gamma_min.

    Args:
        t: number of the update, counted from 1.
        lmbda: delay factor λ, per update.
        alpha: bounds φ from above by 1/alpha + gamma_min.
        delay: d_e, in updates.
        gamma_min: bounds φ from below.

    Returns:
        φ_t, in double precision and without overflow at any t.

    >>> phi(1, lmbda=0.001)
    0.9082612534408295
    >>> phi(10**9, lmbda=0.05)
    0.0
    """
    exponent = lmbda * (t - delay)
    # exp of a large exponent overflows, so the fraction is multiplied by exp(−exponent) above and below.
    if exponent > 0:
        shrunk = math.exp(-exponent)
        return shrunk / (alpha * shrunk + 1.0) + gamma_min
    return 1.0 / (alpha + math.exp(exponent)) + gamma_min
