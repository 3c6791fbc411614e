"""The Gauss-Newton matrix against dense Jacobians and curvlinops' operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import tvlars_probe
from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.oracles.hessians import dense_gauss_newton
from tests.ranked import on_ranks
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature import losses
from tvlars_probe.curvature.cross_check import ForwardGaussNewton
from tvlars_probe.curvature.gauss_newton import GaussNewtonOperator
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Loss = Callable[[Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Embedded words, one layer of attention, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.flatten(1)[:, :5].abs() * 5).long().clamp(max=10)
        out: Tensor = self.head(self.layer(self.words(words)).mean(1))
        return out


def regression() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.SiLU(), nn.Linear(6, 2))


def net(name: str) -> tuple[nn.Module, Loss, tuple[Tensor, Tensor]]:
    """A network, its loss and a sample, in float64."""
    x, y = sample()
    if name in NETWORKS:
        return network(name), F.cross_entropy, (x, y)
    torch.manual_seed(0)
    if name == "regression":
        return regression().double(), F.mse_loss, (x, torch.randn(len(x), 2, dtype=torch.float64))
    return Attention().double(), F.cross_entropy, (x, y)


NETS = [*NETWORKS, "attention", "regression"]


def as_matrix(operator: HessianOperator) -> Tensor:
    return torch.stack([operator.matvec(e) for e in torch.eye(operator.size, dtype=operator.dtype)], dim=1)


def ours(model: nn.Module, loss: Any, data: Any, **options: Any) -> Tensor:
    budget = {"memory_budget": options.pop("memory_budget")} if "memory_budget" in options else {}
    objective = Objective(model, supervised(loss), data, **options)
    with objective.held():
        return as_matrix(GaussNewtonOperator(objective, dict(model.named_parameters()), **budget))


@pytest.mark.parametrize("name", NETS)
def test_it_is_the_product_of_dense_matrices(name: str) -> None:
    model, loss, (x, y) = net(name)
    found, expected = ours(model, loss, (x, y)), dense_gauss_newton(model, loss, x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item() * len(expected))
    assert torch.linalg.eigvalsh(found).min() > -1e-12 * expected.abs().max() * len(expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_curvlinops(name: str) -> None:
    peer = pytest.importorskip("curvlinops")
    model, loss, (x, y) = net(name)
    model.train(name == "attention")  # whose evaluation mode has a fused kernel, which theirs can't differentiate
    theirs = nn.MSELoss() if loss is F.mse_loss else nn.CrossEntropyLoss()
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        expected = peer.GGNLinearOperator(model, theirs, list(model.parameters()), [(x, y)]) @ v
    objective = Objective(model, supervised(loss), (x, y))
    with objective.held():
        found = GaussNewtonOperator(objective, dict(model.named_parameters())).matvec(v)
    assert (found - expected).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("budget", [None, 0], ids=["graphs kept", "built anew"])
def test_it_does_not_depend_on_batches(budget: int | None) -> None:
    model, loss, (x, y) = net("cnn with batch norm")
    parts = chunked(x, y, 7, 1, 16)
    found = ours(model, loss, parts, memory_budget=budget)
    torch.testing.assert_close(found, ours(model, loss, (x, y)), rtol=0, atol=1e-13)


def test_batches_weigh_what_they_are_told() -> None:
    model, _, (x, y) = net("mlp")
    counts = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=counts)
    parts = ours(model, loss, chunked(x, y, 10, 14), weights=lambda batch: counts[batch[1]].sum())
    torch.testing.assert_close(parts, dense_gauss_newton(model, loss, x, y), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["train", "frozen-batch"])
def test_with_a_batchs_statistics_it_is_the_hessian_where_the_residual_vanishes(mode: str) -> None:
    """A squared error of zero leaves of the Hessian the Gauss-Newton matrix alone, in every mode of BatchNorm."""
    model, _, (x, _) = net("residual block")
    objective = Objective(model, supervised(lambda z, _: z.mean()), (x, x), bn_mode=mode)
    with objective.held(), torch.no_grad():
        targets = model(x)
    fitted = Objective(model, supervised(F.mse_loss), (x, targets), bn_mode=mode)
    with fitted.held():
        parameters = dict(model.named_parameters())
        found, hessian = (as_matrix(kind(fitted, parameters)) for kind in (GaussNewtonOperator, HessianOperator))
    torch.testing.assert_close(found, hessian, rtol=0, atol=1e-12 * hessian.abs().max().item() * len(hessian))


def of_a_shard(rank: int, world_size: int, sizes: list[int]) -> dict[str, Tensor]:
    model, loss, (x, y) = net("residual block")
    mine = [(x.split(sizes)[rank], y.split(sizes)[rank])]
    return {
        mode: ours(model, loss, mine, bn_mode=mode, shards=Ranks.of_process_group())
        for mode in ("eval", "train", "frozen-batch")
    }


def test_two_ranks_have_the_matrix_of_one(tmp_path: Path) -> None:
    model, loss, (x, y) = net("residual block")
    for found in on_ranks(of_a_shard, 2, tmp_path, [17, 7]):
        for mode, matrix in found.items():
            expected = ours(model, loss, (x, y), bn_mode=mode)
            torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-12 * len(expected))


@pytest.mark.parametrize("name", NETS)
def test_forward_mode_gives_the_same_products(name: str) -> None:
    model, loss, (x, y) = net(name)
    objective = Objective(model, supervised(loss), chunked(x, y, 10, 14))
    with objective.held():
        operator = GaussNewtonOperator(objective, dict(model.named_parameters()))
        v = torch.randn(operator.size, dtype=torch.float64)
        found, other = operator.matvec(v), ForwardGaussNewton(operator, torch.float64).matvec(v)
    torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-13)


def test_the_gradient_is_the_objectives() -> None:
    model, loss, data = net("mlp")
    objective = Objective(model, supervised(loss), data)
    with objective.held():
        parameters = dict(model.named_parameters())
        found = [kind(objective, parameters).gradient() for kind in (GaussNewtonOperator, HessianOperator)]
    torch.testing.assert_close(*found)


def test_all_figures_of_it_are_measured() -> None:
    model, loss, (x, y) = net("mlp")
    expected = dense_gauss_newton(model, loss, x, y)
    found = tvlars_probe.sharpness(
        model, loss, (x, y), operators=("hessian", "ggn"), trace=True, trace_matvecs=500, density=True, tol=1e-8
    )
    rows = {m.measure: m for m in found.measurements if m.operator == "ggn"}
    assert rows["eigenvalue"].value == pytest.approx(torch.linalg.eigvalsh(expected)[-1].item(), rel=1e-8)
    assert (rows["eigenvalue"].check, rows["eigenvalue"].converged) == ("agrees", True)
    assert rows["trace"].value == pytest.approx(expected.trace().item(), rel=1e-10)
    assert found.densities["ggn"].nodes.max() == pytest.approx(rows["eigenvalue"].value, rel=1e-8)
    assert found.vectors["ggn"].shape == found.vectors["hessian"].shape


class Pair(nn.Module):
    """Has two outputs, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | int]:
        return {"one": self.one(x.flatten(1)).tanh(), "two": self.two(x.flatten(1)), "number": 3}


def test_outputs_may_be_several_tensors() -> None:
    """Of a loss that joins them, and is linear in none."""
    torch.manual_seed(0)
    model, (x, y) = Pair().double(), sample()

    def loss(z: dict[str, Tensor], y: Tensor) -> Tensor:
        return (z["one"] * z["two"]).square().mean() + F.cross_entropy(z["two"], y % 3)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            return torch.cat([out["one"], out["two"]], 1)

    expected = dense_gauss_newton(Flat(), lambda z, y: loss({"one": z[:, :3], "two": z[:, 3:]}, y), x, y)
    torch.testing.assert_close(ours(model, loss, (x, y)), expected, rtol=0, atol=1e-13)


def test_a_loss_may_work_in_place_on_the_outputs() -> None:
    model, _, (x, y) = net("mlp")
    expected = ours(model, lambda z, y: F.cross_entropy((z / 2).masked_fill(z > 1, 0.5), y), (x, y))
    found = ours(model, lambda z, y: F.cross_entropy(z.masked_fill_(z > 1, 1).div_(2), y), (x, y))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_loss_linear_in_the_outputs_has_a_matrix_of_zeros() -> None:
    model, _, (x, y) = net("mlp")
    assert not ours(model, lambda z, y: z.sum(), (x, y)).any()


def test_a_loss_in_one_part_is_refused_with_the_remedy() -> None:
    model, _, data = net("mlp")
    objective = Objective(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), data)
    with (
        objective.held(),
        pytest.raises(UserError, match=r"methods outputs\(model, batch\) and loss"),
    ):
        GaussNewtonOperator(objective, dict(model.named_parameters()))


def test_a_penalty_on_the_weights_is_refused() -> None:
    model, _, data = net("mlp")
    compute = losses.Composed(
        lambda model, batch: model(batch[0]),
        lambda z, batch: F.cross_entropy(z, batch[1]) + sum(p.square().sum() for p in model.parameters()),
    )
    objective = Objective(model, compute, data)
    with objective.held(), pytest.raises(UserError, match="a penalty on the weights"):
        GaussNewtonOperator(objective, dict(model.named_parameters()))


def test_outputs_that_are_no_tensors_are_refused() -> None:
    model, _, data = net("mlp")
    compute = losses.Composed(lambda model, batch: str(model), lambda z, batch: torch.zeros(()))
    objective = Objective(model, compute, data)
    with objective.held(), pytest.raises(UserError, match="found no outputs that depend on a parameter"):
        GaussNewtonOperator(objective, dict(model.named_parameters()))
