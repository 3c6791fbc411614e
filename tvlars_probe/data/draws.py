"""Random numbers that are a function of what they are for: (seed, epoch, sample, view), not of who draws them when.

A counter-based generator: the counter is hashed by the finaliser of SplitMix64 (Steele, Lea, Flood 2014). Ranks,
workers, batch size and order make no difference, and nothing has to be saved to continue a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(indices: NDArray[np.int64], count: int, *, seed: int, epoch: int, view: int = 0) -> NDArray[np.float64]:
    """Independent uniform numbers for each sample.

    Args:
        indices: of the samples.
        count: numbers per sample.
        seed: of the run.
        epoch: from 0.
        view: which of a sample's views.

    Returns:
        (samples, count), each in [0, 1), multiples of 2⁻⁵³.
    """
    key = np.array([0], dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _mix(key + np.uint64(part & 0xFFFFFFFFFFFFFFFF) + _GOLDEN)
    samples = _mix(_mix(indices.astype(np.uint64) + _GOLDEN) ^ key)
    counters = samples[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None] * _GOLDEN
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
