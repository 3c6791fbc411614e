"""Adaptive sharpness against its definition with a dense Jacobian, and what each figure is invariant to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import chunked, sample
from tests.curvature.rescalings import (
    NETWORKS,
    PRESERVING,
    WHOLE_TENSORS,
    at_temperature,
    built,
    output_layer,
    rescaled,
)
from tvlars_probe.errors import UserError

INVARIANT = 1e-6
"""Largest change, as a share, of what a rescaling doesn't move: rounding, and Lanczos' tolerance."""


def figures(model: nn.Module, loss_fn: Any = F.cross_entropy, **further: Any) -> dict[str, float]:
    """The top eigenvalue of each operator in BatchNorm's train mode, and the loss."""
    asked = {"operators": ("hessian", "relative", "ggn", "adaptive"), "bn_mode": "train", "tol": 1e-9} | further
    found = tvlars_probe.sharpness(model, loss_fn, sample(), **asked)
    return {m.operator: m.value for m in found.measurements} | {"loss": found.loss}


def by_definition(model: nn.Module, x: Tensor) -> float:
    """The top eigenvalue of |w|·K·|w|, from the Jacobian of all outputs."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(p: dict[str, Tensor]) -> Tensor:
        z: Tensor = torch.func.functional_call(model, p, (x,))
        return z - z.mean(-1, keepdim=True) if z.shape[-1] > 1 else z

    z = outputs(params)
    jacobian = torch.func.jacrev(outputs)(params)
    scaled = torch.cat([(jacobian[name] * p.abs()).reshape(z.numel(), -1) for name, p in params.items()], 1)
    return torch.linalg.matrix_norm(scaled, 2).item() ** 2 / z.square().sum().item()


@pytest.mark.parametrize("name", [*NETWORKS])
def test_it_is_the_largest_singular_value_of_the_scaled_jacobian(name: str) -> None:
    model = built(name).eval()
    expected = by_definition(model, sample()[0])
    assert figures(model, bn_mode="eval")["adaptive"] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("classes", [1, 2])
def test_one_output_and_two_classes_have_a_sharpness(classes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, classes)).double()
    x, y = sample()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y[:, None]).square().mean()

    found = tvlars_probe.sharpness(model, loss, (x, y % classes), operators="adaptive", tol=1e-9)
    assert found.top == pytest.approx(by_definition(model, x), rel=1e-8)
    assert found.top > 0.01


def test_it_does_not_depend_on_how_the_sample_is_cut() -> None:
    model = built("mlp")
    cut = tvlars_probe.sharpness(model, F.cross_entropy, chunked(*sample(), 5, 7, 12), operators="adaptive", tol=1e-9)
    assert cut.top == pytest.approx(figures(model)["adaptive"], rel=1e-9)
    assert cut.measurements[0].check == "agrees"


def test_outputs_that_are_all_alike_have_none() -> None:
    model = built("mlp")
    nn.init.zeros_(model[5].weight)
    nn.init.zeros_(model[5].bias)
    found = tvlars_probe.sharpness(model, F.cross_entropy, sample(), operators=("hessian", "adaptive"))
    assert [m.operator for m in found.measurements] == ["hessian"]
    assert found.notes == ("adaptive sharpness is unknown: each sample's outputs are all alike",)


def test_it_needs_the_models_outputs() -> None:
    from tvlars_probe.curvature.measures import Measures
    from tvlars_probe.curvature.measuring import measure
    from tvlars_probe.curvature.objective import Objective

    model = built("mlp")
    objective = Objective(model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), sample())
    with pytest.raises(UserError, match="ggn and adaptive need the loss in two parts"):
        measure(objective, dict(model.named_parameters()), Measures(operators=("adaptive",)))


def changes(before: dict[str, float], after: dict[str, float]) -> dict[str, bool]:
    return {name: not math.isclose(after[name], value, rel_tol=INVARIANT) for name, value in before.items()}


@pytest.mark.parametrize("name", [*PRESERVING])
def test_what_rescalings_that_preserve_the_function_change(name: str) -> None:
    """docs/concepts/sharpness.md has these as a table."""
    network, change = PRESERVING[name]
    found = changes(figures(built(network)), figures(rescaled(built(network), change, 5.0)))
    whole = name in WHOLE_TENSORS
    assert found == {"hessian": True, "ggn": True, "relative": not whole, "adaptive": False, "loss": False}


@pytest.mark.parametrize("network", [*NETWORKS])
@pytest.mark.parametrize("where", ["output layer", "temperature"])
def test_what_changes_of_the_losss_scale_change(network: str, where: str) -> None:
    if where == "temperature":
        after = figures(built(network), at_temperature(3.0))
    else:
        after = figures(rescaled(built(network), output_layer, 3.0))
    found = changes(figures(built(network)), after)
    assert found == {"hessian": True, "ggn": True, "relative": True, "adaptive": False, "loss": True}


def test_in_eval_mode_it_stays_if_the_running_statistics_are_scaled_along() -> None:
    plain, other = built("BatchNorm"), rescaled(built("BatchNorm"), PRESERVING["before BatchNorm"][1], 5.0)
    norm = other[1]
    norm.running_mean.mul_(5.0)
    norm.running_var.mul_(25.0)
    found, expected = (figures(model, bn_mode="eval")["adaptive"] for model in (other, plain))
    assert found == pytest.approx(expected, rel=INVARIANT)
