"""What is no batch, and no loss, is refused with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import tvlars_probe
from tests.curvature.models import chunked, network, sample
from tvlars_probe.curvature.batches import PARTS, joined, parts, take
from tvlars_probe.curvature.objective import Objective
from tvlars_probe.errors import UserError

X, Y = sample()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X, "y": Y}, "the data is a dict: give a pair of tensors"),
        (X, "the data is a Tensor"),
        (7, "the data is a int"),
        ([{"x": X, "y": Y}], r"a batch is a dict, and must be a pair .*\[\(batch\['x'\]"),
        ([(X, Y), (X, Y, Y)], r"tuple \(Tensor, Tensor, Tensor\), and must be a pair"),
        ([({"ids": X}, Y)], r"tuple \(dict, Tensor\)"),
        ([((X, X), Y)], r"tuple \(tuple, Tensor\)"),
        ([(X.numpy(), Y.numpy())], r"tuple \(ndarray, ndarray\)"),
        ([(X, None)], r"tuple \(Tensor, NoneType\)"),
        ((X, Y, Y), r"tuple \(Tensor, Tensor, Tensor\)"),
        ([(X, torch.tensor(0))], "a tensor without dimensions"),
        ([], "0 samples"),
        ((X[:0], Y[:0]), "0 samples"),
    ],
)
def test_data_of_another_form_is_refused(data: Any, message: str) -> None:
    for measure in (tvlars_probe.sharpness, tvlars_probe.SharpnessProbe):
        with pytest.raises(UserError, match=message):
            measure(network("mlp"), F.cross_entropy, data)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), r"the shape \(24,\).*reduction='mean'"),
        (lambda z, y: F.cross_entropy(z, y).item(), "the loss is a float"),
        (lambda z, y: {"loss": F.cross_entropy(z, y)}, "the loss is a dict"),
        (lambda z, y: None, "the loss is a NoneType"),
        (lambda z, y: F.cross_entropy(z, y) * 1j, "torch.complex128"),
        (lambda z, y: (z.argmax(1) != y).sum(), "torch.int64"),
        (lambda z, y: F.cross_entropy(z.detach(), y), "no parameter that requires a gradient"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, message: str) -> None:
    for data in ((X, Y), chunked(X, Y, 24)):
        with pytest.raises(UserError, match=message):
            tvlars_probe.sharpness(network("mlp"), loss, data)
        with pytest.raises(UserError, match=message):
            tvlars_probe.SharpnessProbe(network("mlp"), loss, data).measure(0, "train", None)


def test_a_probe_of_no_loss_is_refused() -> None:
    with pytest.raises(UserError, match="give loss_fn"):
        tvlars_probe.SharpnessProbe(network("mlp"), None, (X, Y))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no parameters"):
        tvlars_probe.sharpness(nn.Flatten(), F.cross_entropy, (X, Y))


def test_a_loss_that_joins_all_samples_is_refused_in_pieces() -> None:
    with pytest.raises(UserError, match="which must be one batch"):
        Objective(network("mlp"), lambda m, b: m(b[0]).std(), chunked(X, Y, 12, 12), is_sum_over_samples=False)
    probe = tvlars_probe.SharpnessProbe(
        network("mlp"), None, (X,), compute=lambda m, b: m(b[0]).std(), is_sum_over_samples=False
    )
    assert probe.measure(0, "train", None)["value"]


def test_loaders_and_generators_give_batches() -> None:
    model, loader = network("mlp"), DataLoader(TensorDataset(X, Y), batch_size=10)
    expected = tvlars_probe.sharpness(model, F.cross_entropy, (X, Y), tol=1e-9).top
    empty = [(X[:0], Y[:0])]  # counts nothing
    for data in (loader, (batch for batch in chunked(X, Y, 1, 23)), [X, Y], [[X, Y]], [*chunked(X, Y, 12, 12), *empty]):
        found = tvlars_probe.sharpness(model, F.cross_entropy, data, tol=1e-9)  # type: ignore[arg-type]
        assert found.top == pytest.approx(expected, rel=1e-8)
        assert found.samples == 24


@pytest.mark.parametrize("n", [*range(1, 20), 300])
def test_parts_cover_a_batch_and_have_two_samples_at_least(n: int) -> None:
    batch = torch.arange(n), torch.arange(3 * n)
    found = parts(batch)
    assert len(found) == max(min(PARTS, n // 2), 1)
    assert all(
        torch.equal(torch.cat(tensors), whole) for tensors, whole in zip(zip(*found, strict=True), batch, strict=True)
    )
    assert all(len(b) == 3 * len(a) for a, b in found)
    assert min(len(a) for a, _ in found) >= min(n, 2)


def test_samples_are_taken_and_joined() -> None:
    batch = torch.arange(4), torch.arange(8)
    taken = take(batch, [2, 0])
    assert [t.tolist() for t in taken] == [[2, 0], [4, 5, 0, 1]]
    both = joined(taken, batch)
    assert both is not None
    assert [t.tolist() for t in both] == [[2, 0, 0, 1, 2, 3], [4, 5, 0, 1, *range(8)]]
    others: list[tuple[Tensor, ...]] = [(torch.ones(4, 1), batch[1]), (torch.ones(4), batch[1])]
    assert all(joined(batch, other) is None for other in others)
