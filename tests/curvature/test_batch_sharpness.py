"""Batch sharpness against dense Hessians of each mini-batch."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import pytest
import torch
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.curvature.test_operators import by_another_route
from tvlars_probe.curvature.batches import disjoint
from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.errors import UserError


def measured(model: nn.Module, data: Any, size: int = 5, **options: Any) -> Any:
    (row,) = tvlars_probe.sharpness(
        model, F.cross_entropy, data, top=0, batch_sharpness=True, batch_size=size, **options
    ).measurements
    return row


def gradient(model: nn.Module, x: Any, y: Any, mode: str) -> torch.Tensor:
    twin = copy.deepcopy(model).eval()
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms if mode == "train" else ():
        norm.train()
    loss = F.cross_entropy(twin(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*twin.parameters()])])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_mean_over_mini_batches_of_dense_quotients(name: str, mode: str) -> None:
    model, (x, y) = network(name), sample()
    quotients = []
    for part in disjoint([(x, y)], 5, seed=3):
        g, matrix = gradient(model, *part, mode), by_another_route(model, *part, mode)
        quotients.append((g @ matrix @ g / (g @ g)).item())
    row = measured(model, (x, y), seed=3, bn_mode=mode)
    error = statistics.stdev(quotients) / math.sqrt(4)
    assert row.value == pytest.approx(statistics.fmean(quotients), rel=1e-9)
    assert row.error == pytest.approx(error, rel=1e-9)
    half = student.ppf(0.975, 3) * error
    assert (row.low, row.high) == pytest.approx((row.value - half, row.value + half), rel=1e-9)
    assert (row.operator, row.error_kind, row.batch_size, row.matvecs) == ("hessian", "standard-error", 5, 4)


@pytest.mark.parametrize("mode", BN_MODES)
def test_one_mini_batch_is_the_whole_sample_without_an_error(mode: str) -> None:
    """Its figure is then the curvature along the gradient, which critical sharpness is of a tiny step, too."""
    model, data = network("residual block"), sample()
    row = measured(model, data, 24, bn_mode=mode)
    tiny = torch.optim.SGD(model.parameters(), 1e-5)
    along = tvlars_probe.sharpness(
        model, F.cross_entropy, data, top=0, directional_sharpness=True, optimizer=tiny, bn_mode=mode
    )
    assert row.value == pytest.approx(along.measurements[0].value, rel=1e-6)
    assert (row.error, row.low, row.high, row.matvecs) == (None, None, None, 1)


def test_how_the_sample_is_given_does_not_matter() -> None:
    model, (x, y) = network("cnn with batch norm"), sample()
    assert measured(model, (x, y)).value == pytest.approx(measured(model, chunked(x, y, 7, 17)).value, rel=1e-12)


def test_mini_batches_are_disjoint_and_in_random_order() -> None:
    x = torch.arange(23)
    cut = disjoint([(x[:9], x[:9].repeat_interleave(2)), (x[9:], x[9:].repeat_interleave(2))], 5, seed=0)
    taken = torch.cat([one for one, _ in cut])
    assert [len(one) for one, _ in cut] == [5] * 4
    assert len(set(taken.tolist())) == 20
    assert taken.tolist() != sorted(taken.tolist())
    assert all(torch.equal(two, one.repeat_interleave(2)) for one, two in cut)
    again = disjoint([(x, x.repeat_interleave(2))], 5, seed=0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(cut, again, strict=True))
    other = disjoint([(x, x.repeat_interleave(2))], 5, seed=1)
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(cut, other, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 25}, "needs a mini-batch of 25 samples, and the sample has 24"),
        ({"batch_size": 0}, r"batch-size 0 is too few"),
        ({}, "needs batch_size"),
        ({"batch_size": 5, "engine": "pyhessian"}, "PyHessian has no batch"),
    ],
    ids=["too large", "none", "not given", "by PyHessian"],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tvlars_probe.sharpness(network("mlp"), F.cross_entropy, sample(), top=0, batch_sharpness=True, **options)


def test_batches_that_differ_in_form_are_refused() -> None:
    with pytest.raises(UserError, match="pad them alike"):
        disjoint([(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(4, 2), torch.zeros(4))], 2, seed=0)


def test_a_gradient_of_zero_leaves_it_unknown_with_a_note() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()
    found = tvlars_probe.sharpness(
        model, lambda z, y: (0 * z * z).sum(), sample(), batch_sharpness=True, batch_size=5, top=0
    )
    assert found.measurements == ()
    assert found.notes[0].startswith("batch sharpness is unknown: the gradient of a mini-batch is zero")


def test_a_loss_that_joins_samples_is_measured_on_one_rank() -> None:
    """Each mini-batch's own loss is then that of its samples together."""
    model, (x, y) = network("mlp"), sample()
    probe = tvlars_probe.SharpnessProbe(
        model, lambda z, y: F.cross_entropy(z - z.mean(0), y), (x, y), every=1, measures=("batch",), batch_size=8,
        is_sum_over_samples=False,
    )  # fmt: skip
    assert len(probe.measure(0, "train", None)["value"]) == 1
