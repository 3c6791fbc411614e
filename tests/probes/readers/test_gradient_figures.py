"""Squared norms against float64, and check sums that are linear and go by the logical place of an element."""

from __future__ import annotations

import pytest
import torch

from tvlars_probe.probes.readers.gradient_figures import GradientFigures


@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e18])
@pytest.mark.parametrize("shape", [(3,), (64, 64), (8, 4, 40, 40), (1200, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_hold_at_any_size_and_scale(dtype: torch.dtype, shape: tuple[int, ...], scale: float) -> None:
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) * scale
    expected = grad.double().square().sum().item()
    assert GradientFigures.square(grad) == pytest.approx(expected, rel=1e-6)
    if grad.ndim == 4:
        moved = grad.to(memory_format=torch.channels_last)
        assert GradientFigures.square(moved) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [5000, 1 << 18, (1 << 21) + 7])
def test_squares_do_not_drift_where_elements_are_alike_or_fall(size: int) -> None:
    # One dot product of all of them would be off by 1e-4 and more.
    draw = torch.Generator().manual_seed(0)
    for grad in (torch.full((size,), 0.17), torch.randn(size, generator=draw) * torch.logspace(0, -4, size)):
        assert GradientFigures.square(grad) == pytest.approx(grad.double().square().sum().item(), rel=1e-5)


def test_a_square_of_half_precision_does_not_overflow() -> None:
    grad = torch.full((100,), 1000.0, dtype=torch.float16)
    assert GradientFigures.square(grad) == pytest.approx(1e8, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_check_sums_are_linear_and_see_no_layout(dtype: torch.dtype) -> None:
    figures, draw = GradientFigures(), torch.Generator().manual_seed(1)
    a, b = (torch.randn(6, 5, 7, 3, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    rel = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert figures.check_sum(a + b) == pytest.approx(figures.check_sum(a) + figures.check_sum(b), rel=rel)
    assert figures.check_sum(2 * a) == pytest.approx(2 * figures.check_sum(a), rel=1e-6)
    assert figures.check_sum(a.to(memory_format=torch.channels_last)) == pytest.approx(figures.check_sum(a), rel=1e-6)
    assert figures.check_sum(a) != 0


def test_what_has_no_elements_to_check_has_a_sum_of_zero() -> None:
    assert GradientFigures().check_sum(torch.zeros(0)) == 0.0
    assert GradientFigures().check_sum(torch.zeros(4).to_sparse()) == 0.0
