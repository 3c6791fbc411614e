"""Norms in curvature: of vectors and tensors whose squares their type doesn't hold."""

from __future__ import annotations

import math

import pytest
import torch

from tvlars_probe.curvature import krylov
from tvlars_probe.curvature.scaling import norm_of

EXTREME = [(torch.float32, 1e25), (torch.float32, 1e-25), (torch.float64, 1e200), (torch.float64, 1e-200)]


@pytest.mark.parametrize(("dtype", "size"), EXTREME, ids=str)
def test_norms_are_in_range_where_their_squares_are_not(dtype: torch.dtype, size: float) -> None:
    v = torch.linspace(-1, 1, 3000, dtype=torch.float64).mul(size).to(dtype)
    exact = pytest.approx(math.hypot(*v.tolist()), rel=1e-6)
    assert krylov.norm(v) == exact
    assert norm_of(v.view(30, 100)).item() == exact
