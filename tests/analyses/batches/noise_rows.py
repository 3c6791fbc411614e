"""Rows of ``noise`` with planted signal and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.noise.estimates import unbiased

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def estimates(
    rng: np.random.Generator,
    steps: int,
    *,
    signal: float | Floats = 1.0,
    noise: float = 100.0,
    batch: float = 64,
    pieces: int = 4,
    dimensions: int = 10,
    kept: float = 0.0,
) -> tuple[Floats, Floats]:
    """Unbiased estimates of |G|² and tr Σ of each step, from the gradients of pieces with normal noise.

    Args:
        rng: of the noise.
        steps: their number.
        signal: the true |G|², of each step.
        noise: the true tr Σ.
        batch: samples of a step.
        pieces: into which they are cut.
        dimensions: of the gradient; the noise is alike in all of them.
        kept: share of a step's noise that the next step's is correlated by.
    """
    size = batch / pieces
    made = rng.normal(size=(steps, pieces, dimensions)) * np.sqrt(noise / dimensions / size)
    for t in range(1, steps if kept else 0):
        made[t] = kept * made[t - 1] + np.sqrt(1 - kept * kept) * made[t]
    made[..., 0] += np.sqrt(np.broadcast_to(signal, steps))[:, None]
    square, of_mean = (made**2).sum(2).mean(1), (made.mean(1) ** 2).sum(1)
    return unbiased(square, of_mean, 1 / size, 1 / batch)


def rows(signal: Any, noise: Any, **further: Any) -> pd.DataFrame:
    """Rows of the whole model, one a step."""
    told = {
        "step": np.arange(len(signal)), "source": "training", "unit": "samples", "samples": 64, "pieces": 4,
        "gradient_square_error": np.nan, "noise_trace_error": np.nan, "split": None, "bn_mode": None,
        "created_at": pd.NaT, "top_share": np.nan, "top_share_error": np.nan, "top_vectors": None,
        "noise_skewness": np.nan, "heavy_tails": None,
    }  # fmt: skip
    frame = pd.DataFrame({"gradient_square": np.asarray(signal, float), "noise_trace": np.asarray(noise, float)})
    return frame.assign(**{**told, **further})


def probe(step: int, signal: float, noise: float, errors: tuple[float, float], **further: Any) -> pd.DataFrame:
    """A row of a probe."""
    told = {"step": [step], "source": "probe", "split": "train", "bn_mode": "eval", "samples": 1000, "pieces": 1000}
    return rows([signal], [noise], **{
        **told, "gradient_square_error": errors[0], "noise_trace_error": errors[1], **further,
    })  # fmt: skip
