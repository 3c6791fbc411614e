from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tvlars_probe.curvature.epsilon import epsilon_sharpness
from tvlars_probe.curvature.objective import Objective
from tvlars_probe.errors import UserError


class Bowl(nn.Module):
    """½ Σ h_i (w_i − c_i)²."""

    def __init__(self, h: Tensor, w: Tensor) -> None:
        super().__init__()
        self.h, self.centre = h, w.clone()
        self.w = nn.Parameter(w)


def objective(bowl: Bowl) -> Objective:
    batch = (torch.zeros(3, 1),)
    return Objective(bowl, lambda m, _: 0.5 * (m.h * (m.w - m.centre).square()).sum(), [batch])


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
def test_it_is_exact_on_a_quadratic(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(30, generator=generator, dtype=torch.float64) * 1e3
    w = torch.randn(30, generator=generator, dtype=torch.float64)
    bowl = Bowl(h, w)
    found = epsilon_sharpness(objective(bowl), dict(bowl.named_parameters()), epsilon=epsilon, dimensions=None)
    highest = 0.5 * (h * (epsilon * (w.abs() + 1)).square()).sum().item()
    assert found.value == pytest.approx(100 * highest, rel=1e-9)
    assert found.loss == 0.0
    assert torch.equal(bowl.w, w)


def test_a_subspace_gives_a_lower_bound_of_its_own_maximum() -> None:
    h, w = torch.full((50,), 10.0, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    bowl = Bowl(h, w)
    found = epsilon_sharpness(objective(bowl), dict(bowl.named_parameters()), dimensions=5, seed=1)
    assert found.dimensions == 5
    # δ = P·y with orthonormal P: f = 5·|y|², highest in the corners of the box for y.
    assert 0 < found.highest <= 5 * 5 * (1e-3 * (w.norm().item() + 1)) ** 2
    assert found.highest >= 5 * 5 * 1e-3**2


def test_a_box_without_size_is_refused() -> None:
    bowl = Bowl(torch.ones(2), torch.ones(2))
    with pytest.raises(UserError, match="allowed: above 0"):
        epsilon_sharpness(objective(bowl), dict(bowl.named_parameters()), epsilon=0.0)
