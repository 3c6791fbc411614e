from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.optimizers import lars_ratio, lars_step
from tvlars_probe import LARS


def problem(steps: int) -> tuple[list[np.ndarray[Any, Any]], list[list[np.ndarray[Any, Any]]]]:
    rng = np.random.default_rng(0)
    shapes = [(6, 4), (6,), (3, 2, 2)]
    return [rng.normal(size=s) for s in shapes], [[rng.normal(size=s) for s in shapes] for _ in range(steps)]


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("denominator", ["decayed", "sum", "grad"])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("exclusion", ["ndim", "undecayed"])
def test_variants_are_what_the_libraries_compute(foreach: bool, denominator: Any, clip: bool, exclusion: Any) -> None:
    lr, eta, decay, momentum = 0.2, 0.5, 0.05, 0.9
    weights, grads = problem(6)
    params = [nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = LARS(
        params, lr, decay, momentum, eta, weight_decay_filter=True, denominator=denominator, trust_clip=clip,
        exclusion=exclusion, foreach=foreach,
    )  # fmt: skip
    buffers = [np.zeros_like(w) for w in weights]
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        for j, g in enumerate(step):
            own_decay = decay if weights[j].ndim > 1 else 0.0
            ratio = lars_ratio(weights[j], g, eta=eta, decay=own_decay, denominator=denominator)
            if clip:
                ratio = min(ratio / lr, 1.0)
            if exclusion == "undecayed" and own_decay == 0:
                ratio = 1.0
            weights[j] = lars_step(weights[j], g, buffers[j], lr=lr, momentum=momentum, decay=own_decay, ratio=ratio)
            np.testing.assert_allclose(params[j].detach().numpy(), weights[j], rtol=1e-12)
            assert optimizer.last_step is not None
            assert optimizer.last_step.trust_ratio[j].item() == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("weight", "grad"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_norm_of_zero_leaves_the_rate_alone(foreach: bool, weight: float, grad: float) -> None:
    p = nn.Parameter(torch.full((3, 3), weight))
    p.grad = torch.full((3, 3), grad)
    optimizer = LARS([p], 0.5, weight_decay=0.0, foreach=foreach)
    optimizer.step()
    assert optimizer.last_step is not None
    assert optimizer.last_step.trust_ratio.item() == 1.0
    torch.testing.assert_close(p.detach(), torch.full((3, 3), weight - 0.5 * grad))


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("decay", [0.0, 0.05], ids=["undecayed", "decayed"])
def test_its_variant_is_timms(foreach: bool, clip: bool, decay: float) -> None:
    from timm.optim import Lars

    weights, grads = problem(6)
    ours, theirs = ([nn.Parameter(torch.tensor(w)) for w in weights] for _ in range(2))
    settings = {"lr": 0.2, "momentum": 0.9, "weight_decay": decay, "trust_clip": clip}
    # timm scales the step of a buffer that holds ratio·gradient by lr, as ours does; its eps is ours at zero.
    optimizers = (
        LARS(ours, eta=0.5, denominator="sum", exclusion="undecayed", foreach=foreach, **settings),  # type: ignore[arg-type]
        Lars(theirs, trust_coeff=0.5, eps=0.0, **settings),
    )
    for step in grads:
        for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
            for p, g in zip(params, step, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_clipping_survives_a_rate_of_zero(foreach: bool, lr: Any) -> None:
    p = nn.Parameter(torch.ones(3, 3))
    p.grad = torch.ones(3, 3)
    optimizer = LARS([p], lr, eta=0.0, trust_clip=True, foreach=foreach)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, 3))
    assert optimizer.last_step is not None
    assert optimizer.last_step.trust_ratio.item() == 1.0


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
def test_a_vanishing_ratio_keeps_its_digits(foreach: bool) -> None:
    p = nn.Parameter(torch.ones(3, 3))
    p.grad = torch.ones(3, 3)
    optimizer = LARS([p], 1.0, weight_decay=0.0, eta=1e-20, foreach=foreach)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], torch.full((3, 3), 1e-20), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"invalid momentum: 1.0 \(allowed: 0 <= momentum < 1\)"),
        ({"eta": -1.0}, r"invalid eta: -1.0 \(allowed: 0 <= eta < inf\)"),
        ({"denominator": "norm"}, r"invalid denominator: 'norm' \(allowed: decayed, sum, grad\)"),
        ({"exclusion": "all"}, r"invalid exclusion: 'all' \(allowed: ndim, undecayed\)"),
    ],
    ids=["momentum", "eta", "denominator", "exclusion"],
)
def test_its_own_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(2))], 1.0, **settings)


def test_defaults_are_the_official_ones() -> None:
    group = LARS([nn.Parameter(torch.ones(2))], 1.0).param_groups[0]
    assert (group["weight_decay"], group["momentum"], group["eta"]) == (5e-4, 0.9, 0.001)
    assert not group["weight_decay_filter"]
    assert not group["lars_adaptation_filter"]
