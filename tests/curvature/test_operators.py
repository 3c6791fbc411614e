from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.oracles.hessians import dense_hessian
from tests.ranked import on_ranks
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature import operators
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def as_matrix(hessian: HessianOperator) -> Tensor:
    return torch.stack([hessian.matvec(e) for e in torch.eye(hessian.size, dtype=hessian.dtype)], dim=1)


def by_our_route(model: nn.Module, batches: list[tuple[Tensor, Tensor]], mode: str, **options: int) -> Tensor:
    objective = Objective(model, supervised(F.cross_entropy), batches, bn_mode=mode)
    with objective.held():
        return as_matrix(HessianOperator(objective, dict(model.named_parameters()), **options))


def by_another_route(model: nn.Module, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Dense, from a copy whose BatchNorm layers are set by hand."""
    twin = copy.deepcopy(model).eval()
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if mode == "train":
            norm.train()
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None
    if mode == "frozen-batch":
        # Layer by layer: a layer's statistics are those of its input once all before it are frozen.
        for norm in norms:
            seen: list[Tensor] = []
            handle = norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                twin(x)
            handle.remove()
            norm.running_mean = seen[0].mean((0, 2, 3))
            norm.running_var = seen[0].var((0, 2, 3), correction=0)
    return dense_hessian(twin, F.cross_entropy, x, y)


@pytest.mark.parametrize("mode", BN_MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_hessian_is_the_dense_one(name: str, mode: str) -> None:
    model, (x, y) = network(name), sample()
    ours, dense = by_our_route(model, [(x, y)], mode), by_another_route(model, x, y, mode)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12 * dense.abs().max().item() * len(dense))


def hessians_of_a_shard(rank: int, world_size: int, sizes: list[int]) -> dict[str, Tensor]:
    model, (x, y) = network("residual block"), sample()
    mine = [(x.split(sizes)[rank], y.split(sizes)[rank])]
    found = {}
    for mode in BN_MODES:
        objective = Objective(model, supervised(F.cross_entropy), mine, bn_mode=mode, shards=Ranks.of_process_group())
        with objective.held():
            found[mode] = as_matrix(HessianOperator(objective, dict(model.named_parameters())))
    return found


def test_two_ranks_with_uneven_shards_multiply_by_the_dense_hessian(tmp_path: Path) -> None:
    model, (x, y) = network("residual block"), sample()
    for found in on_ranks(hessians_of_a_shard, 2, tmp_path, [17, 7]):
        for mode in BN_MODES:
            dense = by_another_route(model, x, y, mode)
            torch.testing.assert_close(found[mode], dense, rtol=0, atol=1e-12 * dense.abs().max().item() * len(dense))


@pytest.mark.parametrize("mode", ["eval", "frozen-batch"])
@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["kept graph", "graph built anew"])
def test_chunks_of_any_size_give_the_same_hessian(mode: str, budget: int) -> None:
    model, (x, y) = network("residual block"), sample()
    whole = by_our_route(model, [(x, y)], mode)
    pieces = by_our_route(model, chunked(x, y, 1, 16, 7), mode, memory_budget=budget)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12 * whole.abs().max().item())


def test_the_kept_graph_heeds_a_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    free = operators.free_memory(cpu)
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert operators.free_memory(cpu) == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.max").write_text("8000000\n")
    assert operators.free_memory(cpu, ranks=2) == 2_500_000
    (tmp_path / "memory.max").write_text("1000000\n")
    assert operators.free_memory(cpu) == 0


def test_train_mode_is_refused_in_chunks() -> None:
    model, (x, y) = network("residual block"), sample()
    with pytest.raises(UserError, match="must be one batch"):
        by_our_route(model, chunked(x, y, 12, 12), "train")


def test_train_mode_is_refused_where_there_is_no_variance() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Linear(3, 4)).double()
    x, y = sample(1)
    with pytest.raises(UserError, match="no variance with one value per channel"):
        by_our_route(model, [(x, y)], "train")


class ProbedError(Exception):
    pass


@pytest.mark.parametrize("mode", BN_MODES)
@pytest.mark.parametrize("fails", [False, True], ids=["to the end", "with an exception"])
def test_everything_is_put_back(mode: str, fails: bool) -> None:
    model, (x, y) = network("residual block"), sample()
    model.norm1.eval()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = copy.deepcopy(model.state_dict())
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    modes = [module.training for module in model.modules()]
    keys = [set(module.__dict__) for module in model.modules()]
    buffers = [buffer.data_ptr() for buffer in model.buffers()]
    rng = torch.get_rng_state()

    def compute(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        torch.rand(3)
        if fails:
            raise ProbedError
        return F.cross_entropy(model(batch[0]), batch[1])

    objective = Objective(model, compute, [(x, y)], bn_mode=mode)
    with pytest.raises(ProbedError) if fails else contextlib.nullcontext(), objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        hessian.matvec(torch.ones(hessian.size, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [buffer.data_ptr() for buffer in model.buffers()] == buffers
    for p, (grad, copy_of_it) in zip(model.parameters(), gradients, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, copy_of_it)
    assert [module.training for module in model.modules()] == modes
    assert [set(module.__dict__) for module in model.modules()] == keys
    assert torch.equal(torch.get_rng_state(), rng)


def test_parameters_that_do_not_matter_are_left_out_by_name() -> None:
    model, (x, y) = network("mlp"), sample()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    model[1].bias.requires_grad_(False)
    objective = Objective(model, supervised(F.cross_entropy), [(x, y)])
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        assert hessian.left_out == ("unused", "1.bias")
        assert hessian.size == sum(p.numel() for p in model.parameters()) - 3 - 6
        dense = dense_hessian(copy.deepcopy(model).eval(), F.cross_entropy, x, y, hessian.names)
        torch.testing.assert_close(as_matrix(hessian), dense, rtol=0, atol=1e-12)


def test_a_loss_linear_in_a_parameter_has_a_zero_block() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight.square() * x + self.shift).squeeze(1)

    model = Shifted()
    objective = Objective(model, supervised(lambda out, _: out.mean()), [(torch.ones(4, 1), torch.zeros(4))])
    with objective.held():
        matrix = as_matrix(HessianOperator(objective, dict(model.named_parameters())))
    assert torch.equal(matrix, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))


def test_the_gradient_and_the_loss_are_those_of_the_mean_over_samples() -> None:
    model, (x, y) = network("residual block"), sample()
    objective = Objective(model, supervised(F.cross_entropy), chunked(x, y, 5, 19))
    with objective.held():
        gradient = HessianOperator(objective, dict(model.named_parameters())).gradient()
    model.eval()
    loss = F.cross_entropy(model(x), y)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert objective.loss() == pytest.approx(loss.item(), rel=1e-12)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, (x, y) = network("mlp"), sample()
    with pytest.raises(UserError, match="loss on the sample is nan"):
        Objective(model, supervised(F.cross_entropy), [(x * torch.nan, y)]).loss()


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(UserError, match="0 samples over 1 rank"):
        Objective(network("mlp"), supervised(F.cross_entropy), [])
