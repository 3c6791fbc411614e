"""What trips tools that differentiate other people's models twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import chunked, network, sample
from tests.oracles.hessians import dense_hessian
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective
from tvlars_probe.curvature.operators import DenseOperator
from tvlars_probe.errors import NonFiniteLossError, UserError
from tvlars_probe.models.barlow_twins import BarlowTwins, barlow_twins_loss


def flat_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3


def top(model: nn.Module, **options: Any) -> float:
    return tvlars_probe.sharpness(model, F.cross_entropy, flat_data(), tol=1e-9, **options).top


@pytest.mark.parametrize("size", [*range(1, 16)])
def test_the_trace_of_a_small_matrix_is_exact_whatever_the_seed(size: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix = matrix + matrix.T
    if size > 1:
        matrix[0] = matrix[:, 0] = 0.0  # singular
    for seed in range(10):
        found = hutchpp(DenseOperator(matrix), seed=seed)
        assert found.value == pytest.approx(matrix.trace().item(), abs=1e-10 * size)
        assert (found.standard_error, found.matvecs) == (0.0, size)


def test_multiple_eigenvalues_of_a_small_matrix_are_found_as_often_as_they_occur() -> None:
    values = [5.0, 5.0, 3.0, 3.0, 3.0, 1.0] + [0.0] * 20
    found = lanczos(DenseOperator(torch.diag(torch.tensor(values, dtype=torch.float64))), top=6, bottom=3)
    assert [v.value for v in found.values] == pytest.approx([5, 5, 3, 3, 3, 1, 0, 0, 0], abs=1e-12)
    assert found.converged


class NormReLU(nn.BatchNorm1d):
    """As timm's BatchNormAct: its activation is part of its forward."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.relu(super().forward(input))


@pytest.mark.parametrize("mode", ["eval", "train", "frozen-batch"])
def test_a_batch_norm_with_a_forward_of_its_own_keeps_it(mode: str) -> None:
    torch.manual_seed(0)
    apart = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    joined = nn.Sequential(apart[0], NormReLU(4).double(), apart[3])
    assert top(joined, bn_mode=mode) == pytest.approx(top(apart, bn_mode=mode), rel=1e-8)


def test_a_layer_called_twice_keeps_both_statistics_frozen() -> None:
    """At the weights themselves frozen statistics give the loss of training mode."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    model = BarlowTwins(backbone, 12, (6, 6)).double()
    views = tuple(torch.randn(10, 1, 4, 4, dtype=torch.float64) for _ in range(2))

    def compute(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return barlow_twins_loss(*model(*batch), 0.005)

    losses = {mode: Objective(model, compute, [views], bn_mode=mode) for mode in ("train", "frozen-batch")}
    for objective in losses.values():
        with objective.held():
            assert objective.loss() == objective.loss()
    assert losses["frozen-batch"].loss() == pytest.approx(losses["train"].loss(), rel=1e-12)


def test_layers_without_running_statistics_are_refused_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).double()
    with pytest.raises(UserError, match="keeps no running statistics"):
        top(model)
    assert top(model, bn_mode="train") > 0


def test_hooks_on_gradients_do_not_change_the_hessian_and_stay() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    before = top(model)
    calls = []
    for p in model.parameters():
        p.register_hook(lambda g: calls.append(1) or 2 * g)  # type: ignore[func-returns-value]
    assert top(model) == pytest.approx(before, rel=1e-12)
    assert not calls
    F.cross_entropy(model(flat_data()[0]), flat_data()[1]).backward()
    assert len(calls) == 2


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(70, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] * self.w.square().sum().sqrt()

    data = torch.ones(4, 5, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    for asked in ({}, {"top": 0, "trace": True}, {"top": 0, "density": True}):
        with pytest.raises(NonFiniteLossError, match="aren't finite"):
            tvlars_probe.sharpness(Norm(), F.mse_loss, data, **asked)


def test_a_model_whose_weights_are_all_zero_has_no_relative_sharpness() -> None:
    model = nn.Linear(5, 3).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    found = tvlars_probe.sharpness(model, F.cross_entropy, flat_data(), operators=("hessian", "relative"))
    assert [m.operator for m in found.measurements] == ["hessian"]


def test_no_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="no parameter is chosen"):
        top(nn.Linear(5, 3).double(), parameters=lambda name: False)


def test_attention_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu").double()
    model = nn.Sequential(nn.Unflatten(1, (4, 4)), layer, nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.randn(6, 16, dtype=torch.float64), torch.arange(6) % 3
    found = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), tol=1e-9, parameters=lambda n: "self_attn" in n)

    names = [name for name, _ in model.named_parameters() if "self_attn" in name]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = dense_hessian(model.eval(), F.cross_entropy, x, y, names)
    assert found.top == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=1e-6)


def test_wrappers_are_taken_off() -> None:
    model = nn.Linear(5, 3).double()
    expected, wrapped = top(model), torch.compile(model, backend="eager")
    found = tvlars_probe.sharpness(wrapped, F.cross_entropy, flat_data(), tol=1e-9, per_layer=True)  # type: ignore[arg-type]
    assert found.top == pytest.approx(expected, rel=1e-12)
    assert {m.scope for m in found.measurements} == {"all", ""}
    model.compile(backend="aot_eager")
    assert top(model) == pytest.approx(expected, rel=1e-12)
    assert model._compiled_call_impl is not None


def test_a_list_of_two_tensors_is_a_pair_and_one_operator_may_be_named() -> None:
    model = nn.Linear(5, 3).double()
    found = tvlars_probe.sharpness(model, F.cross_entropy, list(flat_data()), operators="relative")  # type: ignore[arg-type]
    assert {m.operator for m in found.measurements} == {"relative"}


def test_pyhessians_eigenvalues_get_the_ranks_that_they_have() -> None:
    """It finds those of largest magnitude, from either end."""
    model, (x, y) = network("mlp"), sample()
    found = tvlars_probe.sharpness(
        model, lambda z, t: -F.cross_entropy(z, t), (x, y), engine="pyhessian", top=3, tol=1e-8
    )
    dense = torch.linalg.eigvalsh(-dense_hessian(model.eval(), F.cross_entropy, x, y)).numpy()
    assert all(m.rank is not None and m.rank < 0 for m in found.measurements)
    for m in found.measurements:
        assert m.rank is not None
        assert m.value == pytest.approx(np.sort(dense)[-m.rank - 1], rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("max_matvecs", 0), ("trace_matvecs", 1), ("density_probes", 0)])
@pytest.mark.parametrize("engine", ["lanczos", "pyhessian"])
def test_too_little_work_is_refused(name: str, value: int, engine: str) -> None:
    with pytest.raises(UserError, match=f"{name.replace('_', '-')} {value} "):
        tvlars_probe.sharpness(network("mlp"), F.cross_entropy, sample(), engine=engine, **{name: value})


def test_the_probe_finds_the_top_where_another_eigenvalue_has_overtaken() -> None:
    """Two eigenvectors that stay where they are: the last one measured is an exact one, and no longer the top."""
    data = torch.eye(6, dtype=torch.float64)[:, :2].repeat(3, 1), torch.zeros(18, 1, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    scale = torch.tensor([2.0, 1.0], dtype=torch.float64)
    probe = tvlars_probe.SharpnessProbe(
        model, None, [data], every=1, compute=lambda m, b: (m(b[0] * scale) - b[1]).square().sum() / len(b[0])
    )
    found = []
    for step in range(12):
        scale[1] = 1.0 if step < 2 else 4.0
        found.append(probe.measure(step, "train", None)["value"][0] / (2 / 6 * scale.max().item() ** 2))
    assert found == pytest.approx([1.0] * 12, rel=1e-6)


def test_chunks_of_any_size_agree_where_a_layer_is_called_twice() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5).double()
    model = nn.Sequential(norm, nn.Linear(5, 5).double(), norm, nn.Linear(5, 3).double())
    x, y = flat_data()
    values = [
        tvlars_probe.sharpness(model, F.cross_entropy, chunked(x, y, *sizes), bn_mode="frozen-batch", tol=1e-9).top
        for sizes in ((12,), (5, 7))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
