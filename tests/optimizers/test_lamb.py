from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.optimizers import lamb_step
from tvlars_probe import LAMB


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("scale", [0.1, 10.0], ids=["small", "beyond the cap"])
def test_it_follows_its_definition(foreach: bool, adam: bool, scale: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(7, 5)) * scale
    p, m, v = nn.Parameter(torch.tensor(w)), np.zeros_like(w), np.zeros_like(w)
    optimizer = LAMB([p], 0.01, (0.8, 0.99), 1e-6, 0.1, adam, foreach=foreach)
    for _ in range(8):
        g = rng.normal(size=w.shape)
        before = w
        w, ratio = lamb_step(w, g, m, v, lr=0.01, betas=(0.8, 0.99), eps=1e-6, decay=0.1, adam=adam)
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-11)
        last = optimizer.last_step
        assert last is not None
        r = m / (np.sqrt(v) + 1e-6)
        assert last.trust_ratio.item() == pytest.approx(ratio, rel=1e-11)
        assert last.adam_norm.item() == pytest.approx(np.linalg.norm(r), rel=1e-11)
        assert last.weight_adam_dot.item() == pytest.approx((before * r).sum(), rel=1e-9)


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
def test_trust_clip_bounds_the_ratio_at_one(foreach: bool) -> None:
    p = nn.Parameter(torch.full((2, 2), 4.0))
    p.grad = torch.full((2, 2), 1e-9)  # eps dominates: a tiny direction, a large ratio
    optimizer = LAMB([p], foreach=foreach, trust_clip=True)
    optimizer.step()
    assert optimizer.last_step is not None
    assert optimizer.last_step.trust_ratio.item() == 1.0


def test_defaults_are_the_official_ones() -> None:
    group = LAMB([nn.Parameter(torch.ones(2))]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-6, 0.0)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1)])
def test_betas_are_checked(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"invalid betas\[.\].*0 <= beta < 1"):
        LAMB([nn.Parameter(torch.ones(2))], betas=betas)
