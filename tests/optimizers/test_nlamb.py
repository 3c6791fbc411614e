from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tvlars_probe import LAMB, NLAMB


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("scale", [0.1, 10.0], ids=["small", "beyond the cap"])
def test_it_follows_its_definition(foreach: bool, scale: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(7, 5)) * scale
    p, m, v = nn.Parameter(torch.tensor(w)), np.zeros_like(w), np.zeros_like(w)
    optimizer = NLAMB([p], 0.01, (0.8, 0.99), 1e-3, 0.1, foreach=foreach)
    for _ in range(8):
        g = rng.normal(size=w.shape)
        m, v = 0.8 * m + 0.2 * g, 0.99 * v + 0.01 * g**2
        r = (0.8 * m + 0.2 * g) / (np.sqrt(v) + 1e-3)
        d = r + 0.1 * w
        ratio = min(np.linalg.norm(w), 10.0) / np.linalg.norm(d)
        w = w - 0.01 * ratio * d
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-11)
        assert optimizer.last_step is not None
        assert optimizer.last_step.trust_ratio.item() == pytest.approx(ratio, rel=1e-11)
        assert optimizer.last_step.adam_norm.item() == pytest.approx(np.linalg.norm(r), rel=1e-11)


def test_without_momentum_it_is_lamb() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (nn.Parameter(torch.ones(4, 3, dtype=torch.float64)) for _ in range(2))
    plain, ahead = LAMB([one], 0.1, (0.0, 0.9)), NLAMB([other], 0.1, (0.0, 0.9))
    for _ in range(5):
        one.grad = other.grad = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        plain.step()
        ahead.step()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
