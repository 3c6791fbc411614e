"""Losses that aren't a mean over samples are refused in batches, or measured by the weights given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import chunked, network, sample
from tests.oracles.hessians import dense_hessian
from tests.ranked import on_ranks
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Loss = Callable[[Tensor, Tensor], Tensor]

COUNTS = torch.tensor([1.0, 5.0, 20.0, 2.0], dtype=torch.float64)
"""Class weights."""

NO_MEANS: dict[str, Loss] = {
    "sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "sum over a fixed number": lambda z, y: F.cross_entropy(z, y, reduction="sum") / 24,
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=COUNTS.to(z.dtype)),
    "slight class weights": lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 1.1, 1.0, 1.0]).to(z.dtype)),
    "ignored targets": lambda z, y: F.cross_entropy(z, y, ignore_index=2),
    "root mean square": lambda z, y: F.mse_loss(z, F.one_hot(y, 4).to(z.dtype)).sqrt(),
    "worst sample": lambda z, y: F.cross_entropy(z, y, reduction="none").max(),
    "spread over samples": lambda z, y: F.cross_entropy(z, y) + z.std(0).sum(),
}

MEANS: dict[str, Loss] = {
    "cross entropy": F.cross_entropy,
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "with a constant": lambda z, y: F.cross_entropy(z, y) + 100.0,
    "of both signs": lambda z, y: (z.gather(1, y[:, None]) ** 3).mean(),
    "squares": lambda z, y: F.mse_loss(z, F.one_hot(y, 4).to(z.dtype)),
    "nothing of the sample": lambda z, _: 0.0 * z.sum() + 1.0,
}

WEIGHTS: dict[str, Callable[[tuple[Tensor, ...]], float | Tensor]] = {
    "class weights": lambda batch: COUNTS[batch[1]].sum(),
    "ignored targets": lambda batch: int((batch[1] != 2).sum()),
}

LAYOUTS = {
    "mixed": torch.arange(24) % 4,
    "sorted": (torch.arange(24) % 4).sort().values,  # batches of six are of one class each, and add up by themselves
    "in blocks": torch.tensor([0, 1, 2, 3] * 4 + [2] * 8),  # the first batches have halves that are alike
}


def in_batches(layout: str, size: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    return list(zip(sample(dtype=dtype)[0].split(size), LAYOUTS[layout].split(size), strict=True))


def hold(model: nn.Module, loss: Loss, data: Any, **options: Any) -> float:
    """f of the data, once the loss has passed the test that it is a mean."""
    return Objective(model, supervised(loss), data, **options).loss()


@torch.no_grad()
def plainly(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> float:
    """The loss of the whole sample, without an objective."""
    return loss(model.eval()(x), y).item()


@pytest.mark.parametrize("size", [1, 6, 8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in NO_MEANS if name != "spread over samples"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_is_no_mean_is_refused(name: str, layout: str, size: int, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"isn't the mean over its samples.*reduction='mean'.*weights="):
        hold(network("mlp", dtype), NO_MEANS[name], in_batches(layout, size, dtype))


@pytest.mark.parametrize("name", ["sum", "class weights", "ignored targets"])
def test_what_is_no_mean_is_refused_in_bfloat16(name: str) -> None:
    with pytest.raises(UserError, match="isn't the mean"):
        hold(network("mlp").bfloat16(), NO_MEANS[name], in_batches("mixed", 8, torch.bfloat16))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)
@pytest.mark.parametrize("size", [1, 5, 16])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_never_refused(name: str, size: int, dtype: torch.dtype) -> None:
    for network_name in ("mlp", "residual block"):
        model, x = network(network_name).to(dtype), sample(dtype=dtype)[0]
        expected = plainly(model, MEANS[name], x, LAYOUTS["sorted"])
        found = hold(model, MEANS[name], in_batches("sorted", size, dtype))
        assert found == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps, abs=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("loss", ["sum", "class weights", "spread over samples"])
def test_any_loss_of_one_batch_is_measured_as_it_is(loss: str) -> None:
    model, (x, y) = network("mlp"), sample()
    found = tvlars_probe.sharpness(model, NO_MEANS[loss], (x, y), tol=1e-9)
    exact = torch.linalg.eigvalsh(dense_hessian(model.eval(), NO_MEANS[loss], x, y))[-1].item()
    assert found.top == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("engine", ["lanczos", "pyhessian"])
@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_by_weights_the_whole_samples_loss_is_measured(name: str, layout: str, size: int, engine: str) -> None:
    """Batches in which every target is ignored weigh nothing, and their loss is NaN."""
    model, x, y = network("mlp"), sample()[0], LAYOUTS[layout]
    found = tvlars_probe.sharpness(
        model, NO_MEANS[name], in_batches(layout, size), weights=WEIGHTS[name], tol=1e-8, engine=engine
    )
    assert found.loss == pytest.approx(NO_MEANS[name](model.eval()(x), y).item(), rel=1e-12)
    spectrum = torch.linalg.eigvalsh(dense_hessian(model, NO_MEANS[name], x, y))
    # PyHessian finds the eigenvalue of largest magnitude, which may be a negative one.
    exact = spectrum[-1] if engine == "lanczos" else spectrum[spectrum.abs().argmax()]
    assert found.measurements[0].value == pytest.approx(exact.item(), rel=1e-6 if engine == "lanczos" else 1e-3)
    assert found.samples == 24


def test_epsilon_sharpness_by_weights_is_that_of_one_batch() -> None:
    model, name = network("mlp"), "class weights"
    found = [
        tvlars_probe.sharpness(model, NO_MEANS[name], data, weights=WEIGHTS[name], epsilon=True).frame().value
        for data in (in_batches("sorted", 24), in_batches("sorted", 6))
    ]
    assert found[1].to_numpy() == pytest.approx(found[0].to_numpy(), rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda batch: 1.0, "gives 1 for 2 samples, 1 for 2 others, but 1"),
        (lambda batch: len(batch[1]), "isn't the mean by weights="),
        (lambda batch: -1.0, "gives -1 for a batch"),
        (lambda batch: float("nan"), "gives nan for a batch"),
        (lambda batch: COUNTS[batch[1]], r"Tensor of shape \(8,\)"),
        (lambda batch: None, "NoneType for a batch: it must give one number"),
        (lambda batch: 1j, "complex for a batch"),
        (lambda batch: 0, "gives 0 for all"),
    ],
)
def test_other_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hold(network("mlp"), NO_MEANS["class weights"], in_batches("mixed", 8), weights=weights)


@pytest.mark.parametrize("kind", ["perfect fit", "head of zeros", "saturated"])
@pytest.mark.parametrize("name", ["sum", "class weights"])
def test_losses_that_are_all_alike_hide_nothing(kind: str, name: str) -> None:
    """All zero, all log 4, or all 1e-7: then sums and means add up alike at the model's own weights."""
    model, (x, y) = network("mlp"), sample()
    head, loss = model[4], NO_MEANS[name]
    if kind == "perfect fit":
        y = model.eval()(x).detach()
        loss = {"sum": lambda z, t: (z - t).square().sum(), "class weights": _weighted_squares}[name]
    if kind == "head of zeros":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    if kind == "saturated":
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False)).double()
        model[1].weight.data = 16.0 * F.one_hot(y, 4).double().T @ torch.linalg.pinv(x.flatten(1)).T
        y = model(x).argmax(1)
    with pytest.raises(UserError, match="isn't the mean"):
        hold(model, loss, chunked(x, y, 8, 16))


def _weighted_squares(z: Tensor, t: Tensor) -> Tensor:
    weights = 1 + t[:, :1].abs()
    return (weights * (z - t).square()).sum() / weights.sum()


@pytest.mark.parametrize("size", [1, 7, 48])
def test_the_test_costs_three_passes_over_the_sample_once(size: int) -> None:
    """And some tens of samples; nothing where the sample is one batch."""
    passed = 0

    def loss(z: Tensor, y: Tensor) -> Tensor:
        nonlocal passed
        passed += len(z)
        return F.cross_entropy(z, y)

    x, y = sample(96)
    objective = Objective(network("mlp"), supervised(loss), list(zip(x.split(size), y.split(size), strict=True)))
    with objective.held():
        assert 96 < passed <= 3 * 96 + 50
    with objective.held():
        assert passed <= 3 * 96 + 50
    passed = 0
    with Objective(network("mlp"), supervised(loss), (x, y)).held():
        assert passed == 0


def test_a_loss_that_is_random_is_told_so() -> None:
    with pytest.raises(UserError, match=r"of the same samples it is .* then .*: it is random"):
        hold(network("mlp"), lambda z, y: F.cross_entropy(F.dropout(z), y), in_batches("mixed", 8))


def test_a_model_that_joins_samples_is_refused() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = network("mlp")

        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            return (z @ z.T).softmax(1) @ z

    with pytest.raises(UserError, match="isn't the mean"):
        hold(Attention(), F.cross_entropy, in_batches("mixed", 12))


def test_parameters_that_must_be_positive_are_no_obstacle() -> None:
    """At random weights this model raises; the test goes on at others."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = network("mlp"), nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            if not 0.4 < self.scale < 0.6:
                raise ValueError(self.scale)
            return self.layer(x) / self.scale

    expected = plainly(Scaled(), F.cross_entropy, sample()[0], LAYOUTS["sorted"])
    assert hold(Scaled(), F.cross_entropy, in_batches("sorted", 8)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UserError, match="isn't the mean"):
        hold(Scaled(), NO_MEANS["class weights"], in_batches("sorted", 8))


def test_a_model_of_low_precision_inside_is_no_obstacle() -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 300), nn.Tanh(), nn.Linear(300, 4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x).float()

    torch.manual_seed(0)
    model, x = Autocast(), sample(dtype=torch.float32)[0]
    expected = plainly(model, F.cross_entropy, x, LAYOUTS["mixed"])
    assert hold(model, F.cross_entropy, in_batches("mixed", 8, torch.float32)) == pytest.approx(expected, rel=1e-2)
    with pytest.raises(UserError, match="isn't the mean"):
        hold(Autocast(), NO_MEANS["class weights"], in_batches("mixed", 8, torch.float32))


def test_losses_per_row_may_have_several_rows_per_sample() -> None:
    """As of sequences, whose targets are flattened."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.view(-1, 2), y)

    x, y = sample()[0], torch.arange(48) % 2
    data = list(zip(x.split(8), y.split(16), strict=True))
    assert hold(network("mlp"), loss, data) == pytest.approx(plainly(network("mlp"), loss, x, y), rel=1e-12)
    with pytest.raises(UserError, match="isn't the mean"):
        hold(network("mlp"), lambda z, y: loss(z, y) * len(y), data)
    with pytest.raises(UserError, match="first dimensions 8 and 15"):
        hold(network("mlp"), loss, [(a, b[:15]) for a, b in data])


def test_batches_padded_to_different_lengths_are_tested_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)).double()
    data = [(torch.randint(9, (6, n)), torch.randint(3, (6, n))) for n in (3, 5, 8)]
    data[1][1][:3] = -100
    data[2][1][0, 1:] = -100

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.transpose(1, 2), y)

    with pytest.raises(UserError, match="isn't the mean"):
        hold(model, loss, data)
    found = tvlars_probe.sharpness(model, loss, data, weights=lambda batch: (batch[1] != -100).sum())
    flat = torch.cat([model(x).flatten(0, 1) for x, _ in data]), torch.cat([y.flatten() for _, y in data])
    assert found.loss == pytest.approx(F.cross_entropy(*flat).item(), rel=1e-12)


def test_a_loss_that_is_not_finite_is_still_told_as_such() -> None:
    x, y = sample()
    with pytest.raises(NonFiniteLossError, match="is nan"):
        tvlars_probe.sharpness(network("mlp"), F.cross_entropy, chunked(x * torch.nan, y, 12, 12))


def test_in_train_mode_a_sum_over_the_whole_sample_is_measured_as_it_is() -> None:
    model, (x, y) = network("residual block"), sample()
    found = hold(model, NO_MEANS["sum"], [(x, y)], bn_mode="train")
    with torch.no_grad():
        assert found == pytest.approx(NO_MEANS["sum"](model.train()(x), y).item(), rel=1e-12)


def on_two_ranks(rank: int, world_size: int) -> list[str]:
    """What each rank is told; each has one batch, of one class where the sample is sorted."""
    x, told = sample()[0], []
    for bn_mode, name, layout, weights in (
        ("eval", "class weights", "sorted", None),
        ("train", "class weights", "mixed", None),
        ("train", "sum", "mixed", None),
        ("eval", "class weights", "sorted", WEIGHTS["class weights"]),
        ("train", "class weights", "sorted", WEIGHTS["class weights"]),
    ):
        y = LAYOUTS[layout] // 2 * 2 if layout == "sorted" else LAYOUTS[layout]
        mine = (x.split(12)[rank], y.split(12)[rank])
        options: dict[str, Any] = {"bn_mode": bn_mode, "shards": Ranks.of_process_group(), "weights": weights}
        try:
            objective = Objective(network("residual block"), supervised(NO_MEANS[name]), mine, **options)
            told.append(f"{objective.loss():.9f}")
        except UserError as error:
            told.append(str(error))
    return told


def test_ranks_refuse_and_measure_together(tmp_path: Path) -> None:
    model, x, y = network("residual block").eval(), sample()[0], LAYOUTS["sorted"] // 2 * 2
    exact = NO_MEANS["class weights"](model(x), y).item()
    for told in on_ranks(on_two_ranks, 2, tmp_path):
        for text in told[:3]:
            assert "isn't the mean" in text or "can't compute" in text
        assert float(told[3]) == pytest.approx(exact, abs=1e-8)
        assert float(told[4]) > 0


def one_rank_alone(rank: int, world_size: int) -> list[str]:
    """Something is wrong on rank 1 alone."""
    (x, y), told = sample(), []
    odd: list[dict[str, Any]] = [
        {"data": {"x": x} if rank else (x, y)},
        {"data": (x, y), "weights": lambda batch: -rank},
        {"data": (x, y), "compute": supervised(lambda z, t: z.sum(1) if rank else F.cross_entropy(z, t))},
        {"data": (x, y), "compute": supervised(lambda z, t: z if rank else z.sum()), "bn_mode": "frozen-batch"},
        {"data": chunked(x, y, 12, 12) if rank else (x, y), "bn_mode": "train"},
        {"data": [] if rank else (x, y)},
    ]
    for one in odd:
        options = {"compute": supervised(F.cross_entropy), "shards": Ranks.of_process_group(), **one}
        try:
            Objective(network("residual block"), **options).loss()
        except UserError as error:
            told.append(str(error))
    return told


def test_what_is_wrong_on_one_rank_ends_all(tmp_path: Path) -> None:
    first, second = on_ranks(one_rank_alone, 2, tmp_path)
    assert len(first) == len(second) == 6
    assert all(text.startswith("rank 1 can't compute the loss of its part of the sample: ") for text in first[:5])
    owns = ["is a dict", "gives -1", "shape (2,)", "shape (24, 4)", "one batch", "too small"]
    for texts in zip(first, second, owns, strict=True):
        assert all(texts[-1] in text for text in texts)


def test_weights_that_are_zero_for_small_batches_are_no_sum_over_samples() -> None:
    x, y = sample(128)
    with pytest.raises(UserError, match="weights= gives 0 for all parts"):
        hold(network("mlp"), F.cross_entropy, chunked(x, y, 64, 64), weights=lambda b: float(len(b[0]) >= 64))
