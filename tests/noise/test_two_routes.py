"""Hooks on the pieces of training, and the probe on a fixed sample at the same weights: two routes to one quantity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import tvlars_probe

if TYPE_CHECKING:
    from pathlib import Path

COMPARISONS, STEPS, PIECES, SIZE, SAMPLE = 400, 40, 4, 8, 256


def data(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Fresh samples: both routes draw from the same, unbounded data."""
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, :1] - x[:, 1:2]).sin() + 0.3 * torch.randn(count, 1, generator=generator, dtype=torch.float64)


@pytest.mark.slow
def test_they_agree_within_their_errors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the weights stay where they are
    draw = torch.Generator().manual_seed(1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True, detail="norms") as rec:
        for _ in range(COMPARISONS * STEPS):
            optimizer.zero_grad()
            x, y = data(draw, PIECES * SIZE)
            for inputs, targets in zip(x.chunk(PIECES), y.chunk(PIECES), strict=True):
                (nn.functional.mse_loss(model(inputs), targets) / PIECES).backward()
            optimizer.step()
            rec.log(samples=PIECES * SIZE)
    rows = tvlars_probe.open_run(tmp_path / "r").noise()
    probes = [
        tvlars_probe.gradient_noise(model, nn.functional.mse_loss, data(draw, SAMPLE)).frame().set_index("scope")
        for _ in range(COMPARISONS)
    ]
    quantile = stats.t.ppf(0.975, STEPS - 1)
    for scope, of_scope in rows.groupby("scope", observed=True):
        for column in ("gradient_square", "noise_trace"):
            hooks = of_scope.sort_values("step")[column].to_numpy().reshape(COMPARISONS, STEPS)
            error = hooks.std(axis=1, ddof=1) / np.sqrt(STEPS)
            value, its_error = (
                np.array([probe.loc[scope, name] for probe in probes]) for name in (column, f"{column}_error")
            )
            z = (hooks.mean(axis=1) - value) / np.hypot(error, its_error)
            share = np.mean(np.abs(z) <= quantile)
            assert 0.91 <= share <= 0.99, (scope, column, share)
            # And on average: what one route is off by, the 400 together would show.
            assert abs(z.mean()) < 4 / np.sqrt(COMPARISONS), (scope, column, z.mean())
