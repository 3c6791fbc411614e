"""The kernels that the optimizers share."""

from __future__ import annotations

import pytest
import torch

from tvlars_probe.optimizers.kernels import fused_sgd


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("size", [1, 108])  # shorter and longer than a vector register
def test_sgd_in_half_precision_is_rounded_once(dtype: torch.dtype, momentum: float | None, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    w, g, mu = (torch.randn(size, generator=generator).to(dtype) for _ in range(3))
    direction = g.double() + 0.1 * w.double()
    if momentum is not None:
        direction = momentum * mu.double() + direction
    expected = w.double() - 0.1 * direction
    fused_sgd(w, g, None if momentum is None else mu, lr=0.1, weight_decay=0.1, momentum=momentum or 0.0)
    rounding = torch.finfo(dtype).eps
    assert w.double() == pytest.approx(expected, rel=rounding, abs=rounding / 4)
    if momentum is not None:
        assert mu.double() == pytest.approx(direction, rel=rounding, abs=rounding / 4)
