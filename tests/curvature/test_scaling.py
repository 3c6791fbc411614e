from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.curvature.models import network, sample
from tests.curvature.test_operators import by_another_route
from tvlars_probe import LAMB, LARS, TVLARS, applied_rates
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.scaling import Rates, effective, relative
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer


def test_the_effective_operator_is_the_dense_one() -> None:
    model, (x, y) = network("residual block"), sample()
    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in model.named_parameters()]
    rates = {
        name: torch.rand(p.shape if "conv" in name else (), generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    decay = dict.fromkeys(names[:2], 0.1)
    objective = Objective(model, supervised(F.cross_entropy), [(x, y)])
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        operator = effective(hessian, Rates(rates=rates, decay=decay))
        found = lanczos(operator, top=3, bottom=2, tol=1e-10)
    dense = by_another_route(model, x, y, "eval")
    params = dict(model.named_parameters())
    root = torch.cat([rates[name].expand(params[name].shape).reshape(-1) for name in names]).sqrt()
    shift = torch.cat([torch.full((params[name].numel(),), decay.get(name, 0.0)) for name in names]).double()
    exact = torch.linalg.eigvalsh(root[:, None] * (dense + torch.diag(shift)) * root)
    expected = [*exact.flip(0)[:3].tolist(), *exact[:2].tolist()]
    assert [v.value for v in found.values] == pytest.approx(expected, abs=1e-8 * exact.abs().max().item())


def relative_top(model: nn.Module, mode: str) -> float:
    objective = Objective(model, supervised(F.cross_entropy), [sample()], bn_mode=mode)
    with objective.held():
        return lanczos(relative(HessianOperator(objective, dict(model.named_parameters()))), tol=1e-10).top


@pytest.mark.parametrize("mode", ["train", "frozen-batch"])
def test_the_relative_operator_is_invariant_when_a_normalised_layer_is_rescaled(mode: str) -> None:
    model = network("residual block")
    for norm in (model.norm1, model.norm2):
        norm.eps = 1e-14  # with it, the layer before isn't quite scale-invariant
    before = relative_top(model, mode)
    raw = raw_top(model, mode)
    with torch.no_grad():
        model.conv.weight *= 4
        model.stem.weight *= 0.25
    assert relative_top(model, mode) == pytest.approx(before, rel=1e-9)
    assert raw_top(model, mode) != pytest.approx(raw, rel=0.1)


def raw_top(model: nn.Module, mode: str) -> float:
    objective = Objective(model, supervised(F.cross_entropy), [sample()], bn_mode=mode)
    with objective.held():
        return lanczos(HessianOperator(objective, dict(model.named_parameters())), tol=1e-10).top


def test_the_relative_operator_is_the_dense_one() -> None:
    model, (x, y) = network("mlp"), sample()
    dense = by_another_route(model, x, y, "eval")
    scale = torch.cat([p.detach().norm().expand(p.numel()) for p in model.parameters()])
    assert relative_top(model, "eval") == pytest.approx(
        torch.linalg.eigvalsh(scale[:, None] * dense * scale)[-1].item(), rel=1e-8
    )


def adam_frozen(optimizer: Optimizer) -> None:
    """v stays what it was, and the step count with it, so that D does."""
    for state in optimizer.state.values():
        for name in ("exp_avg_sq", "square_avg", "sum"):
            if name in state:
                state[name].fill_(0.25)
        if "step" in state:
            state["step"].fill_(1e6)


OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True),
    "sgd, dampening": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, dampening=0.5),
    "sgd, decay": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.5, weight_decay=0.3),
    "lars": lambda p: LARS(p, lr=1.0, weight_decay=0.2, momentum=0.9),
    "tvlars": lambda p: TVLARS(p, lr=1.0, weight_decay=0.2, momentum=0.9, lmbda=0.0),
    "lamb": lambda p: LAMB(p, lr=1.0, weight_decay=0.0, adam=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.9, 1 - 1e-9)),
    "adam, decay": lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.9, 1 - 1e-9), weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, betas=(0.8, 1 - 1e-9), weight_decay=0.0),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1.0, lr_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0, momentum=0.9, alpha=1 - 1e-9),
}


def minimise(make: Callable[[list[Tensor]], Optimizer], share: float, steps: int = 100) -> float:
    """|w| at the end over |w| in the middle, on ½·3·w² at a rate that is ``share`` of the limit by `applied_rates`."""
    curvature, model = 3.0, nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1e-6)
    optimizer = make(list(model.parameters()))

    def step() -> float:
        optimizer.zero_grad()
        (0.5 * curvature * model.weight.square().sum()).backward()
        adam_frozen(optimizer)
        optimizer.step()
        adam_frozen(optimizer)
        return abs(model.weight.item())

    step()
    if optimizer.state:
        adam_frozen(optimizer)
    rates = applied_rates(model, optimizer, step=0)
    assert rates.limit is not None
    shift = rates.decay["weight"]
    sharpness = rates.rates["weight"].max().item() * (curvature + shift)
    for group in optimizer.param_groups:
        group["lr"] *= share * rates.limit / sharpness
    with torch.no_grad():
        model.weight.fill_(1e-6)
    for state in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg"):
            if state.get(name) is not None:
                state[name].zero_()
    sizes = [step() for _ in range(steps)]
    return max(sizes[-25:]) / max(sizes[25:50])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_converges_below_the_limit_and_diverges_above(name: str) -> None:
    assert minimise(OPTIMIZERS[name], 0.99) < 1
    assert minimise(OPTIMIZERS[name], 1.01) > 1


def test_rates_of_an_optimizer_that_is_not_known_are_refused() -> None:
    model, (x, y) = network("mlp", torch.float32), sample(dtype=torch.float32)
    optimizer = torch.optim.Rprop(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    objective = Objective(model, supervised(F.cross_entropy), [(x, y)])
    with objective.held(), pytest.raises(UserError, match=r"that of 1\.weight isn't known"):
        effective(HessianOperator(objective, dict(model.named_parameters())), applied_rates(model, optimizer))


def test_the_rates_of_a_recorded_step_are_used_where_they_are_given() -> None:
    model: Any = network("mlp", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, dampening=0.2, momentum=0.9)
    rates = applied_rates(model, optimizer, scaled_lr=dict.fromkeys(dict(model.named_parameters()), 0.1), step=7)
    assert rates.step == 7
    assert all(rate.item() == pytest.approx(0.08) for rate in rates.rates.values())
