from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.curvature.test_operators import by_another_route
from tests.oracles.hessians import dense_hessian
from tvlars_probe.curvature.measures import Measures
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import ModelConfig


@pytest.mark.parametrize("mode", ["eval", "train", "frozen-batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_at_both_ends_trace_and_density_are_those_of_the_dense_hessian(name: str, mode: str) -> None:
    model, (x, y) = network(name), sample()
    exact = torch.linalg.eigvalsh(by_another_route(model, x, y, mode))
    norm = exact.abs().max().item()
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, (x, y), bn_mode=mode, top=3, bottom=3, tol=1e-9, trace=True, density=True,
        density_probes=20,
    )  # fmt: skip
    values = {m.rank: m.value for m in found.measurements if m.measure == "eigenvalue"}
    assert [values[rank] for rank in (1, 2, 3)] == pytest.approx(exact.flip(0)[:3].tolist(), abs=1e-8 * norm)
    assert [values[rank] for rank in (-1, -2, -3)] == pytest.approx(exact[:3].tolist(), abs=1e-8 * norm)
    assert found.top == values[1]
    trace = next(m for m in found.measurements if m.measure == "trace")
    assert abs(trace.value - exact.sum().item()) <= 4 * trace.error + 1e-10
    density = found.densities["hessian"]
    width = np.ptp(exact.numpy())
    assert wasserstein_distance(density.grid, exact.numpy(), density.density) < 0.01 * width


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_the_blocks_of_the_dense_hessian(name: str) -> None:
    model, (x, y) = network(name), sample()
    found = tvlars_probe.sharpness(model, F.cross_entropy, chunked(x, y, 10, 14), per_layer=True, tol=1e-9)
    layers = {m.scope: m.value for m in found.measurements if m.scope_kind == "layer"}
    twin = copy.deepcopy(model).eval()
    names = [n for n, _ in model.named_parameters()]
    assert set(layers) == {n.rpartition(".")[0] for n in names}
    for layer, value in layers.items():
        block = dense_hessian(twin, F.cross_entropy, x, y, [n for n in names if n.rpartition(".")[0] == layer])
        eigenvalues = torch.linalg.eigvalsh(block)
        assert value == pytest.approx(eigenvalues[-1].item(), abs=1e-8 * eigenvalues.abs().max().item())


def test_both_engines_agree_and_leave_the_model_alone() -> None:
    model, data = network("residual block"), sample()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    figures = {}
    for engine in ("lanczos", "pyhessian"):
        found = tvlars_probe.sharpness(
            model, F.cross_entropy, chunked(*data, 10, 14), engine=engine, tol=1e-8, trace=True, trace_matvecs=200
        )
        figures[engine] = {m.measure: m for m in found.measurements}
        assert {m.engine for m in found.measurements} == {engine}
    ours, theirs = figures["lanczos"], figures["pyhessian"]
    assert theirs["eigenvalue"].value == pytest.approx(ours["eigenvalue"].value, rel=1e-5)
    assert theirs["eigenvalue"].matvecs > 1
    assert abs(theirs["trace"].value - ours["trace"].value) < 4 * (theirs["trace"].error + ours["trace"].error)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def without_kinks(model: nn.Module) -> nn.Module:
    """The model with SiLU in place of each ReLU."""
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return model


@pytest.mark.slow
def test_the_top_eigenvalue_of_a_trained_resnet18_in_float32_is_that_in_float64() -> None:
    """11 million parameters, at the default tolerance against a tolerance of 1e-5; BatchNorm in training mode.

    With SiLU: of 720,896 ReLUs some have an input that is zero to rounding, positive in one precision and negative in
    the other. That is another function, whose top eigenvalue is 4e-5 to 1e-3 away; which ReLUs depends on the CPU.
    """
    data = DataConfig(name="digits").load().train
    torch.manual_seed(0)
    model = without_kinks(ModelConfig(name="resnet18").build(channels=1, num_classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        x, y = data.batch(torch.arange(128 * step, 128 * (step + 1)) % len(data))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = data.batch(torch.arange(16))
    single = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), bn_mode="train")
    twice = tvlars_probe.sharpness(model.double(), F.cross_entropy, (x.double(), y), bn_mode="train", tol=1e-5)
    assert single.measurements[0].converged
    assert single.top == pytest.approx(twice.top, rel=1e-5)


def test_parameters_can_be_chosen() -> None:
    model, (x, y) = network("mlp"), sample()
    found = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), parameters=lambda n: n.endswith("bias"), tol=1e-9)
    dense = dense_hessian(copy.deepcopy(model).eval(), F.cross_entropy, x, y, ["1.bias", "4.bias"])
    assert found.top == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-8)


def test_the_frame_has_a_row_per_figure() -> None:
    model, data = network("mlp"), sample()
    frame = tvlars_probe.sharpness(model, F.cross_entropy, data, top=2, epsilon=True).frame()
    assert frame.measure.tolist() == ["eigenvalue"] * 2 + ["epsilon_sharpness"] * 4
    assert (frame.samples == 24).all()
    assert (frame.value[2:] > 0).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"operators": ("gauss-newton",)}, "hessian, effective, relative"),
        ({"engine": "arpack"}, "lanczos, pyhessian"),
        ({"tol": 0.0}, "above 0"),
        ({"top": -1}, "0 or more"),
        ({"top": 0}, "nothing to measure"),
        ({"engine": "pyhessian", "density": True}, r"torch\.eig"),
        ({"engine": "pyhessian", "operators": ("relative",)}, "raw Hessian"),
    ],
)
def test_impossible_measures_are_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Measures(**asked)  # type: ignore[arg-type]


def test_the_effective_operator_without_rates_is_refused() -> None:
    with pytest.raises(UserError, match="there has been no step yet"):
        tvlars_probe.sharpness(network("mlp"), F.cross_entropy, sample(), operators=("effective",))
