from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.oracles import barlow_twins as oracle
from tests.ranked import on_ranks
from tvlars_probe.models.backbones import MODELS, ModelConfig, without_head
from tvlars_probe.models.barlow_twins import LinearProbe, barlow_twins_loss, build_barlow_twins, build_linear_probe
from tvlars_probe.models.batch_norm import SynchronizedBatchNorm, synchronize_batch_norm

if TYPE_CHECKING:
    from pathlib import Path

LAMBDA = 0.03


def inputs() -> tuple[Tensor, Tensor]:
    """Seven samples: two ranks have four and three."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(7, 2, 4, 4, generator=generator, dtype=torch.float64)
    return first, first + 0.3 * torch.randn(7, 2, 4, 4, generator=generator, dtype=torch.float64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(),
        nn.Linear(6, 4),
    )  # fmt: skip
    return layers.double()


class Twin(nn.Module):
    """Both views in one call, as DDP wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = synchronize_batch_norm(net())

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(first), self.net(second)


def by_definition() -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients in one process, with nothing of the package."""
    model = net()
    parameters = dict(model.named_parameters())

    def embed(x: Tensor) -> Tensor:
        x = torch.relu(oracle.batch_norm(model[0](x), model[1].weight, model[1].bias)).flatten(1)
        x = torch.tanh(oracle.columns(model[4](x)) * model[5].weight + model[5].bias)
        return model[7](x)  # type: ignore[no-any-return]

    first, second = inputs()
    loss = oracle.loss(embed(first), embed(second), LAMBDA)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


def train_step(rank: int, world_size: int, sizes: list[int]) -> dict[str, Any]:
    """A rank's loss, the gradients that DDP leaves, the running statistics, and a Hessian-vector product."""
    model = Twin()
    ddp = DistributedDataParallel(model) if world_size > 1 else model
    first, second = (x.split(sizes)[rank] for x in inputs())
    loss = barlow_twins_loss(*ddp(first, second), LAMBDA)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}
    return {
        "loss": loss.detach(),
        "gradients": gradients,
        "buffers": {name: b.clone() for name, b in model.net.named_buffers()},
        "product": hessian_product(model, first, second, world_size),
    }


def hessian_product(model: Twin, first: Tensor, second: Tensor, world_size: int) -> dict[str, Tensor]:
    """H·v for v = 1, 2, 3, ... scaled, by two differentiations through the collectives."""
    names, parameters = zip(*model.net.named_parameters(), strict=True)
    loss = barlow_twins_loss(*model(first, second), LAMBDA)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    dot = sum(((g * direction(p)).sum() for g, p in zip(gradients, parameters, strict=True)), torch.zeros(()))
    products = torch.autograd.grad(dot, parameters)
    if world_size > 1:
        for product in products:
            # Each rank has the part through its own samples, W times: W ranks hold the same loss.
            torch.distributed.all_reduce(product)
    return {name: product / world_size for name, product in zip(names, products, strict=True)}


def direction(p: Tensor) -> Tensor:
    return (torch.arange(p.numel(), dtype=p.dtype) / p.numel()).cos().view_as(p)


def product_by_definition() -> dict[str, Tensor]:
    model, (first, second) = net(), inputs()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        oracle.loss(model(first), model(second), LAMBDA), list(parameters.values()), create_graph=True
    )
    dot = sum(((g * direction(p)).sum() for g, p in zip(gradients, parameters.values(), strict=True)), torch.zeros(()))
    return dict(zip(parameters, torch.autograd.grad(dot, list(parameters.values())), strict=True))


def running_by_torch() -> dict[str, Tensor]:
    model = net()
    for x in inputs():
        model(x)
    return dict(model.named_buffers())


@pytest.mark.parametrize("sizes", [[7], [4, 3], [7, 0]], ids=["one rank", "two ranks", "two ranks, one idle"])
def test_loss_and_gradients_are_those_of_one_process_in_closed_form(tmp_path: Path, sizes: list[int]) -> None:
    loss, gradients = by_definition()
    results = on_ranks(train_step, len(sizes), tmp_path, sizes) if len(sizes) > 1 else [train_step(0, 1, sizes)]
    products, buffers = product_by_definition(), running_by_torch()
    for result in results:
        torch.testing.assert_close(result["loss"], loss, rtol=1e-9, atol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(result["product"][name], products[name], rtol=1e-6, atol=1e-8)
        for name, buffer in buffers.items():
            torch.testing.assert_close(result["buffers"][name], buffer)


def second_derivatives(rank: int, world_size: int) -> bool:
    """gradcheck and gradgradcheck of the synchronised layer on this rank's samples, the other rank's held fixed."""
    torch.manual_seed(3)
    layer = SynchronizedBatchNorm(2).double()
    mine = [3, 2][rank]
    x = torch.randn(5, 2, 2, dtype=torch.float64).split([3, 2])[rank].clone().requires_grad_()
    weights = torch.randn(mine, 2, 2, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return (layer(x) * weights).sin().sum()

    # The derivative through the collectives is that of the sum of both ranks' f, so both are perturbed in turn by
    # finite differences of that sum.
    (gradient,) = torch.autograd.grad(f(x), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * weights).sum(), x)
    for index in range(20):
        owner, k = divmod(index, 10)
        owner_size = [12, 8][owner]
        k %= owner_size
        eps = 1e-5
        totals, slopes = [], []
        for sign in (1, -1):
            moved = x.detach().clone()
            if owner == rank:
                moved.view(-1)[k] += sign * eps
            moved.requires_grad_()
            value = f(moved)
            (slope,) = torch.autograd.grad(value, moved)
            pair = torch.stack([value.detach(), (slope * weights).sum()])
            torch.distributed.all_reduce(pair)
            totals.append(pair[0])
            slopes.append(pair[1])
        if owner == rank:
            torch.testing.assert_close(gradient.view(-1)[k].detach(), (totals[0] - totals[1]) / (2 * eps), rtol=1e-6,
                                       atol=1e-8)  # fmt: skip
            torch.testing.assert_close(second.view(-1)[k], (slopes[0] - slopes[1]) / (2 * eps), rtol=1e-6, atol=1e-8)
    return True


def test_synchronised_batch_norm_is_differentiated_twice_over_ranks(tmp_path: Path) -> None:
    assert on_ranks(second_derivatives, 2, tmp_path) == [True, True]


def test_gradgradcheck_on_one_rank() -> None:
    torch.manual_seed(0)
    layer = SynchronizedBatchNorm(3).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: barlow_twins_loss(a, b, LAMBDA), (z, other))


def test_perfect_twins_without_redundancy_have_no_loss() -> None:
    z = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64))[0]
    z = torch.linalg.qr(z - z.mean(0))[0]  # columns with mean 0, orthogonal
    assert barlow_twins_loss(z, z, 1.0).item() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_a_backbone_of_any_width(name: str) -> None:
    config = ModelConfig(name=name)
    model = build_barlow_twins(config, channels=1, widths=(16, 8))
    first, second = model(torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16))
    assert first.shape == second.shape == (4, 8)
    _, features = without_head(config.build(channels=1, num_classes=3))
    assert model.projector[0].in_features == features
    plain = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert plain == []


def test_a_frozen_probe_keeps_its_backbone_in_evaluation_mode_and_still() -> None:
    probe = build_linear_probe(ModelConfig(name="resnet18"), channels=1, num_classes=5, frozen=True)
    assert isinstance(probe, LinearProbe)
    probe.train()
    before = [b.clone() for b in probe.backbone.buffers()]
    probe(torch.randn(4, 1, 16, 16)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, probe.backbone.buffers(), strict=True))
    assert [name for name, p in probe.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]


def test_a_synchronised_layer_takes_over_state_and_is_torchs_on_one_rank() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3))
    layer(torch.randn(8, 3, 4, 4))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    twin = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)))
    twin.load_state_dict(state)
    x = torch.randn(8, 3, 4, 4)
    assert torch.equal(layer(x), twin(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), twin.buffers(), strict=True))
