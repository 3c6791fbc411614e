"""Tensors whose squares leave their type: the norms, the ratios and the steps are those of ordinary tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tvlars_probe import LAMB, LARS, NLAMB, TVLARS
from tvlars_probe.analyses.variants import Variant
from tvlars_probe.optimizers.kernels import decayed_direction
from tvlars_probe.optimizers.trust_ratios import trust_ratios

SCALES = [(torch.float32, 2.0**70), (torch.float32, 2.0**-70), (torch.float64, 2.0**700), (torch.float64, 2.0**-700)]
"""Powers of two, so that scaled tensors have the bits of the others; their squares are beyond the type."""

BOTH = pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])


def stepped(kind: Any, dtype: torch.dtype, scale: float, **settings: Any) -> tuple[list[torch.Tensor], Any]:
    """The weights after three steps, over the scale, and what the last one computed."""
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((40, 80), (7,), (3, 5))
    ]
    params = [nn.Parameter(w * scale) for w in made]
    optimizer = kind(params, **settings)
    for _ in range(3):
        for p, w in zip(params, made, strict=True):
            p.grad = torch.sin(3 * w) * scale
        optimizer.step()
    return [p.detach() / scale for p in params], optimizer.last_step


@BOTH
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
@pytest.mark.parametrize("denominator", ["decayed", "sum", "grad"])
def test_lars_scales_with_its_weights_and_gradients(
    dtype: torch.dtype, scale: float, denominator: str, foreach: bool
) -> None:
    settings = {"lr": 0.5, "weight_decay": 0.125, "denominator": denominator, "foreach": foreach}
    one, usual = stepped(LARS, dtype, 1.0, **settings)
    other, extreme = stepped(LARS, dtype, scale, **settings)
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
    np.testing.assert_allclose(extreme.trust_ratio, usual.trust_ratio, rtol=1e-6)
    for name in ("weight_norm", "grad_norm", "direction_norm"):
        np.testing.assert_allclose(getattr(extreme, name) / scale, getattr(usual, name), rtol=1e-6)


@BOTH
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
@pytest.mark.parametrize("kind", [TVLARS, LAMB, NLAMB])
def test_the_others_have_the_norms_of_their_tensors(kind: Any, dtype: torch.dtype, scale: float, foreach: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = (torch.randn(50, 60, generator=generator).to(dtype) * scale for _ in range(2))
    p = nn.Parameter(w.clone())
    p.grad = g
    optimizer = kind([p], lr=0.1, weight_decay=0.01, foreach=foreach)
    optimizer.step()
    norms = [math.hypot(*t.double().flatten().tolist()) for t in (w, g)]
    assert [optimizer.last_step.weight_norm.item(), optimizer.last_step.grad_norm.item()] == pytest.approx(norms)
    if kind is TVLARS:
        direction = math.hypot(*(g.double() + 0.01 * w.double()).flatten().tolist())
        assert optimizer.last_step.direction_norm.item() == pytest.approx(direction, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0**600, 2.0**-600])
@pytest.mark.parametrize("share", [1.0, -0.1, -0.9999])
def test_a_decayed_direction_beyond_squares_is_formed(scale: float, share: float) -> None:
    """u = share·w, so that ‖u + λw‖ is |share + λ|·‖w‖."""
    w = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    size = math.hypot(*w.tolist())
    dot = math.copysign(math.inf, share) if scale > 1 else share * size * size
    norm, direction, left = decayed_direction(w, share * w, 1.0, size, abs(share) * size, dot)
    assert norm == pytest.approx(abs(share + 1) * size, rel=1e-9)
    torch.testing.assert_close(direction + left * w, (share + 1) * w, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_a_ratio_from_norms_scales_with_them(scale: float) -> None:
    told = {"lr": 1.0, "decay": np.array([0.5]), "adapted": np.array([True])}
    norms = {"weight_norm": np.array([[2.0 * scale]]), "direction": np.array([[3.0 * scale]])}
    group = Variant(weight_decay=0.5, eta=1.0).description
    found = trust_ratios(group, dot=np.array([[0.0]]), **norms, **told)
    assert found.ratio.item() == pytest.approx(2 / math.sqrt(10))
    assert found.divisor.item() == pytest.approx(math.sqrt(10) * scale)
    lost = trust_ratios(group, dot=np.array([[np.inf]]), **norms, **told)
    assert np.isnan(lost.ratio.item())
    # Without decay the direction is the gradient, whatever the product.
    plain = Variant(weight_decay=0.0, eta=1.0).description
    kept = trust_ratios(plain, dot=np.array([[np.inf]]), **norms, **{**told, "decay": np.array([0.0])})
    assert kept.divisor.item() == pytest.approx(3.0 * scale)
    assert kept.ratio.item() == pytest.approx(2 / 3)
