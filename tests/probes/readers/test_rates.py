"""The limit of stability of whole models: at it, weights and momentum follow a recurrence of spectral radius one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

import tvlars_probe
from tvlars_probe import LAMB, LARS, NLAMB, Decay, GroupDescription, Momentum, Scaling, applied_rates, describe

if TYPE_CHECKING:
    from tvlars_probe.curvature.scaling import Rates

BETA, LATE = 0.9, 1 - 1e-9


class Shrinking(LARS):
    """LARS with decoupled decay, as far as its description goes."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


describe.register(Shrinking)(
    lambda optimizer: [
        GroupDescription(
            optimizer="Shrinking",
            momentum=Momentum(form="heavy-ball", beta=BETA),
            decay=Decay(form="decoupled", value=group["shrinkage"]),
            scaling=Scaling(kind="trust-ratio", eta=0.1),
            norms="last_step",
        )
        for group in optimizer.param_groups
    ]
)


def groups(p: list[nn.Parameter], **settings: list[float]) -> list[dict[str, Any]]:
    """A group per tensor, with settings of its own."""
    return [{"params": [one], **{name: of[i] for name, of in settings.items()}} for i, one in enumerate(p)]


MADE: dict[str, Any] = {
    "adamw, one decay": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(BETA, LATE), weight_decay=3.0),
    "adamw, a group without": lambda p: torch.optim.AdamW(
        groups(p, weight_decay=[3.0, 0.0]), lr=0.1, betas=(BETA, LATE)
    ),
    "adamw, rates of their own": lambda p: torch.optim.AdamW(
        groups(p, lr=[0.1, 0.02]), betas=(BETA, LATE), weight_decay=3.0
    ),
    "lamb": lambda p: LAMB(p, lr=0.1, betas=(BETA, LATE), weight_decay=2.0),
    "nlamb": lambda p: NLAMB(p, lr=0.1, betas=(BETA, LATE), weight_decay=2.0),
    "sgd, coupled": lambda p: torch.optim.SGD(groups(p, weight_decay=[0.5, 0.1]), lr=0.1, momentum=BETA),
    "lars, decoupled": lambda p: Shrinking(groups(p, shrinkage=[2.0, 0.5]), lr=0.1, eta=0.1, momentum=BETA),
}
"""Optimizers of two tensors, by name."""


def stepped(name: str) -> tuple[Any, list[nn.Parameter]]:
    """The optimizer after three steps, and its tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((2, 2), (3,))]
    optimizer = MADE[name](tensors)
    for _ in range(3):
        for p in tensors:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return optimizer, tensors


def by_hand(name: str, optimizer: Any, tensors: list[nn.Parameter]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each weight: what multiplies its gradient, its coupled decay, and its decay beside the momentum."""
    rate, coupled, apart = [], [], []
    ratios = getattr(optimizer, "last_step", None)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i, p in enumerate(tensors):
        group, ones = group_of[id(p)], np.ones(p.numel())
        lr, decay = group["lr"], group.get("weight_decay", 0.0)
        q = 1.0 if ratios is None else float(ratios.trust_ratio[i])
        divisor = ones
        if "exp_avg_sq" in optimizer.state[p]:
            v = optimizer.state[p]["exp_avg_sq"].flatten().numpy()
            corrected = (1.0, 1.0) if "lamb" in name else (1 - BETA**3, 1 - LATE**3)
            divisor = (np.sqrt(v / corrected[1]) + group["eps"]) * corrected[0] / (1 - BETA)
        rate.append(lr * q / divisor)
        coupled.append(ones * (decay if name.startswith("sgd") else 0.0))
        shrinkage = {"adamw": lr * decay, "lamb": lr * q * decay, "nlamb": lr * q * decay}
        apart.append(ones * shrinkage.get(name.partition(",")[0], lr * group.get("shrinkage", 0.0)))
    return np.concatenate(rate), np.concatenate(coupled), np.concatenate(apart)


def radius(name: str, hessian: np.ndarray, made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """Spectral radius of w, M → (1 − δ)w − M', M' with M' = βM + D(H + Λ)w; Nesterov's step is D(H + Λ)w + βM'."""
    rate, coupled, apart = made
    one, pull = np.eye(len(rate)), rate[:, None] * (hessian + np.diag(coupled))
    new = np.hstack([pull, BETA * one])
    stepped_by = np.hstack([pull, 0 * one]) + BETA * new if name == "nlamb" else new
    matrix = np.vstack([np.hstack([np.diag(1 - apart), 0 * one]) - stepped_by, new])
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def effective_top(rates: Rates, hessian: np.ndarray) -> float:
    """The top eigenvalue of D^½ (H + Λ) D^½ with D and Λ as `applied_rates` gives them."""
    sizes = {"optimizer0.group0.0": (2, 2), "optimizer0.group0.1": (3,), "optimizer0.group1.0": (3,)}
    flat = [
        np.concatenate([torch.as_tensor(of[n]).double().expand(sizes[n]).flatten().numpy() for n in rates.rates])
        for of in (rates.rates, rates.decay)
    ]
    root = np.sqrt(flat[0])
    return float(np.linalg.eigvalsh(root[:, None] * (hessian + np.diag(flat[1])) * root)[-1])


@pytest.mark.parametrize("name", MADE)
def test_where_the_effective_sharpness_is_at_its_limit_the_recurrence_is_too(name: str) -> None:
    optimizer, tensors = stepped(name)
    rates = applied_rates(None, optimizer)
    assert rates.limit is not None
    factor = np.random.default_rng(0).normal(size=(7, 7))
    hessian = factor @ factor.T
    limit = rates.limit
    scale = brentq(lambda c: effective_top(rates, c * hessian) - limit, 1e-6, 1e9, xtol=1e-300, rtol=1e-14)
    made = by_hand(name, optimizer, tensors)
    assert radius(name, scale * hessian, made) == pytest.approx(1.0, abs=1e-9)
    assert radius(name, 0.999 * scale * hessian, made) < 1 < radius(name, 1.001 * scale * hessian, made)


def test_decay_that_all_tensors_share_lowers_the_limit_and_leaves_the_operator_alone() -> None:
    found = applied_rates(None, stepped("adamw, one decay")[0])
    assert found.limit == pytest.approx((1 + BETA) * (2 - 0.1 * 3.0), rel=1e-15)
    assert [*found.decay.values()] == [0.0, 0.0]


def test_momenta_that_differ_have_no_common_limit() -> None:
    tensors = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(groups(tensors, momentum=[0.9, 0.5]), lr=0.1)
    assert tvlars_probe.applied_rates(None, optimizer).limit is None


def test_the_limit_is_that_of_the_recorded_step_whatever_lr_a_schedule_has_set_since() -> None:
    optimizer, _ = stepped("adamw, one decay")
    optimizer.param_groups[0]["lr"] = 1e-5
    recorded = dict.fromkeys(("optimizer0.group0.0", "optimizer0.group0.1"), 0.1)
    found = applied_rates(None, optimizer, scaled_lr=recorded)
    assert found.limit == pytest.approx((1 + BETA) * (2 - 0.1 * 3.0), rel=1e-15)


def test_a_tensor_that_has_made_no_step_leaves_the_limit_alone() -> None:
    optimizer, _ = stepped("adamw, one decay")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.5})
    assert applied_rates(None, optimizer).limit == pytest.approx((1 + BETA) * (2 - 0.1 * 3.0), rel=1e-15)


def test_rates_of_double_precision_are_not_rounded() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2).double())], lr=0.1, momentum=0.9, dampening=0.3)
    (rate,) = applied_rates(None, optimizer).rates.values()
    assert rate.item() == pytest.approx(0.1 * 0.7, rel=1e-15)


def test_a_fused_step_that_was_skipped_has_no_rate() -> None:
    """It leaves a count of zero updates, by which no bias can be corrected."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = applied_rates(model, optimizer)
    assert all(rate.isnan().all() for rate in found.rates.values())
