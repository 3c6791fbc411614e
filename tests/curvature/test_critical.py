"""Critical sharpness against closed forms and a fine scan of the loss along the update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.ranked import on_ranks
from tests.sharded import KINDS, Net, batch, needs_fsdp, sharded, share, whole
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.critical import critical_sharpness
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.updates import Update, coming_update, copies
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

CURVATURES = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)


class Bowl(nn.Module):
    """f(w) = Σ a_i·w_i²/2, whatever the data."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (CURVATURES * self.w**2).sum() / 2 + 0 * x.sum()


NOTHING = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)


def plain(z: Tensor, _: Tensor) -> Tensor:
    return z.mean()


def found_on(model: nn.Module, changes: dict[str, Tensor], lr: float = 0.1, **options: Any) -> Any:
    objective = Objective(model, supervised(plain), NOTHING)
    return critical_sharpness(objective, dict(model.named_parameters()), Update(changes, lr), **options)


@pytest.mark.parametrize("lr", [1e-4, 0.1, 0.24, 3.0], ids=["tiny", "small", "just below the limit", "far beyond it"])
def test_of_gradient_descent_on_a_quadratic_it_is_the_curvature_along_the_gradient(lr: float) -> None:
    model = Bowl()
    g = CURVATURES * model.w.detach()
    found = found_on(model, {"w": -lr * g}, lr, tol=1e-4)
    expected = ((CURVATURES * g * g).sum() / (g @ g)).item()
    assert found.low <= expected <= found.high
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.multiple == pytest.approx(2 / (expected * lr), rel=1e-4)


def test_the_bracket_is_as_narrow_as_asked_and_costs_one_evaluation_a_halving() -> None:
    g = CURVATURES * Bowl().w.detach()
    wide, narrow = (found_on(Bowl(), {"w": -0.1 * g}, tol=tol) for tol in (0.1, 0.1 / 2**6))
    for found, tol in ((wide, 0.1), (narrow, 0.1 / 2**6)):
        assert found.high / found.low <= 1 / (1 - tol)
    assert narrow.evaluations == wide.evaluations + 6
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@pytest.mark.parametrize(
    ("changes", "lr", "reason"),
    [
        ([0.0, 0.0, 0.0], 0.1, "the update changes no weight"),
        ([1.0, -2.0, 0.5], 0.1, "falls nowhere along the update"),
        ([-1e-30, 0.0, 0.0], 0.1, "doesn't rise up to"),
        ([-0.1, 0.0, 0.0], 0.0, "the learning rate of the update is 0"),
        ([float("nan"), 0.0, 0.0], 0.1, "falls nowhere"),
    ],
    ids=["no update", "uphill", "too small", "no rate", "not finite"],
)
def test_what_cannot_be_told_is_unknown_with_the_reason(changes: list[float], lr: float, reason: str) -> None:
    found = found_on(Bowl(), {"w": torch.tensor(changes, dtype=torch.float64)}, lr)
    assert (found.value, found.low, found.high, found.multiple) == (None, None, None, None)
    assert reason in found.reason


def test_a_loss_that_is_not_finite_further_on_has_risen() -> None:
    """f = w − ln w falls from w = 3 until w = 1; w = 0 is its end, and NaN lies beyond."""

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.w - self.w.log() + 0 * x.sum()

    found = found_on(Log(), {"w": torch.tensor(-1.0, dtype=torch.float64)}, 1.0, tol=1e-6)
    w = 3 - found.multiple
    assert w - torch.tensor(w).log().item() == pytest.approx(3 - torch.tensor(3.0).log().item(), abs=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_where_a_fine_scan_first_rises(name: str, optimizer: Any) -> None:
    model, (x, y) = network(name), sample()
    made = optimizer(model.parameters(), lr=0.01)
    found = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), optimizer=made, top=0, critical_sharpness=True)
    objective = Objective(model, supervised(F.cross_entropy), (x, y))
    update = coming_update(objective, dict(model.named_parameters()), made)
    (row,) = found.measurements
    multiples = torch.linspace(0, 4 / (row.value * 0.01), 4001).tolist()
    origin = copies(dict(model.named_parameters()))
    losses = []
    with torch.no_grad():
        model.eval()
        for c in multiples:
            for key, p in model.named_parameters():
                p.copy_(origin[key] + c * update.changes[key])
            losses.append(F.cross_entropy(model(x), y).item())
    first = next(c for c, loss in zip(multiples, losses, strict=True) if loss > losses[0])
    step = multiples[1]
    assert 2 / (first * 0.01) <= row.value + row.error
    assert 2 / ((first - step) * 0.01) >= row.value - row.error
    assert (row.operator, row.error_kind, row.tol) == ("none", "bracket", 0.01)
    assert row.error <= 0.0051 * row.value


def test_near_a_minimum_the_bracket_holds_what_rounding_leaves_open() -> None:
    """In float32, where the loss falls along the update by little more than its own rounding."""
    loss_fn, told = nn.MSELoss(), []
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(200, 10)
        y = x @ torch.randn(10, 1) + 0.5 * torch.randn(200, 1)
        model = nn.Linear(10, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(101):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            if step in (0, 60, 100):
                found = tvlars_probe.sharpness(model, loss_fn, (x, y), optimizer=optimizer, critical_sharpness=True)
                hessian = 2 * x.double().T @ x.double() / len(x)
                g = hessian @ model.weight.detach().double().T - 2 * x.double().T @ y.double() / len(x)
                expected = (g.T @ hessian @ g / (g.T @ g)).item()
                told += [(row, expected) for row in found.measurements if row.measure == "critical_sharpness"]
            optimizer.step()
    assert len(told) == 12
    assert all(abs(row.value - expected) <= row.error + 1e-6 * expected for row, expected in told)
    assert max(row.error / row.value for row, _ in told) > 0.05


def test_batches_and_their_weights_do_not_matter() -> None:
    model, (x, y) = network("mlp"), sample()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    asked: dict[str, Any] = {"top": 0, "critical_sharpness": True, "optimizer": optimizer}
    one, parts = (
        tvlars_probe.sharpness(model, F.cross_entropy, data, **asked).measurements[0].value
        for data in ((x, y), chunked(x, y, 7, 17))
    )
    assert one == pytest.approx(parts, rel=1e-12)


class Once(torch.autograd.Function):
    """tanh, whose backward pass can't be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class Fused(nn.Module):
    def __init__(self, kernel: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.first, self.last = kernel, nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.kernel(self.first(x.flatten(1))))
        return out


def test_it_takes_kernels_that_cannot_be_differentiated_twice() -> None:
    x, y = sample(dtype=torch.float32)
    found = []
    for kernel in (torch.tanh, Once.apply):
        model = Fused(kernel)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        asked: dict[str, Any] = {"top": 0, "critical_sharpness": True, "optimizer": optimizer}
        found.append(tvlars_probe.sharpness(model, F.cross_entropy, (x, y), **asked).measurements[0].value)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    (hessian,) = tvlars_probe.sharpness(model, F.cross_entropy, (x, y)).measurements
    assert (hessian.check, hessian.converged) == ("asymmetric", False)


def test_without_an_optimizer_it_is_refused() -> None:
    model, data = network("mlp"), sample()
    with pytest.raises(UserError, match="need an update of the weights: give the optimizer"):
        tvlars_probe.sharpness(model, F.cross_entropy, data, top=0, critical_sharpness=True)


def of_a_shard(rank: int, world_size: int, sizes: list[int]) -> dict[str, float]:
    model, (x, y) = network("residual block"), sample()
    mine = (x.split(sizes)[rank], y.split(sizes)[rank])
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, mine, optimizer=torch.optim.Adam(model.parameters(), 0.01),
        shards=Ranks.of_process_group(), directional_sharpness=True, critical_sharpness=True,
        batch_sharpness=True, batch_size=5, top=0,
    )  # fmt: skip
    return {m.measure: m.value for m in found.measurements} | {
        f"{m.measure} error": m.error or 0.0 for m in found.measurements
    }


def test_two_ranks_have_the_numbers_of_one(tmp_path: Path) -> None:
    expected = of_a_shard_alone()
    for found in on_ranks(of_a_shard, 2, tmp_path, [17, 7]):
        assert found == pytest.approx(expected, rel=1e-9)


def of_a_shard_alone() -> dict[str, float]:
    return of_a_shard(0, 1, [24])


def of_sharded_models(rank: int, world_size: int) -> dict[str, float]:
    found = {}
    for kind in KINDS[world_size]:
        if kind == "tp":
            continue  # its ranks share a batch, which isn't a sample in parts
        model = sharded(kind, world_size)
        x = batch(0, share(kind, rank, world_size))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        probe = tvlars_probe.SharpnessProbe(
            model, lambda z, y: z.square().mean(), (x, x), every=1, measures=("critical",), bn_mode="eval"
        )
        probe.measure(0, "train", None)
        probe.remember()
        model(x).square().mean().backward()
        optimizer.step()
        after = [whole(p).clone() for p in model.parameters()]
        rows = probe.measure_update(0, "train", 0.5)
        assert all(torch.equal(whole(p), q) for p, q in zip(model.parameters(), after, strict=True))
        # FSDP gathers what is in the shards again: the next pass is at the weights after the update.
        loss = model(x).square().mean().detach()
        found |= {kind: rows["value"][0], f"{kind} loss": rows["loss"][0], f"{kind} after": loss.item()}
    return found


@needs_fsdp
def test_it_takes_models_sharded_by_fsdp(tmp_path: Path) -> None:
    twin, x = Net(), batch(0)
    optimizer = torch.optim.SGD(twin.parameters(), 0.5)
    objective = Objective(twin, lambda model, b: model(b[0]).square().mean(), (x,))
    parameters = dict(twin.named_parameters())
    update = coming_update(objective, parameters, optimizer)
    expected = critical_sharpness(objective, parameters, update).value
    for rank, found in enumerate(on_ranks(of_sharded_models, 2, tmp_path)):
        assert found["fsdp"] == pytest.approx(expected, rel=1e-4)
        assert found["fsdp loss"] == pytest.approx(objective.loss(), rel=1e-5)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.data = copies(parameters)[name]
        moved = Net()
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p += update.changes[name]
            assert found["fsdp after"] == pytest.approx(moved(batch(0, (rank, 2))).square().mean().item(), rel=1e-4)
