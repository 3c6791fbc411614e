from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.curvature.zoo import ZOO, fingerprint, member
from tvlars_probe.collectives import Ranks
from tvlars_probe.data.images import TensorImages
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.runners.evaluation import Precision, evaluate

CPU = torch.device("cpu")


def test_scores_are_means_over_all_samples() -> None:
    images = DataConfig().load().test
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    scores = evaluate(model, images, Ranks(CPU), Precision("float32", CPU))
    x, y = images.batch(torch.arange(len(images)))
    model.eval()
    with torch.no_grad():
        logits = model(x)
    best = logits.topk(5).indices
    assert abs(scores.loss - F.cross_entropy(logits, y).item()) < 1e-5
    assert scores.acc1 == 100 * (best[:, 0] == y).sum().item() / 360
    assert abs((scores.acc5 or 0) - 100 * (best == y[:, None]).any(1).float().mean().item()) < 1e-4
    assert scores.samples == 360


def test_modes_and_statistics_are_put_back() -> None:
    images = DataConfig().load().test
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 10))
    model[1].eval()
    before = [buffer.clone() for buffer in model.buffers()]
    evaluate(model, images, Ranks(CPU), Precision("float32", CPU))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_evaluating_changes_nothing(name: str) -> None:
    """Nor does an evaluation that ends midway."""
    inside, data = member(name)
    model = nn.Sequential(nn.Flatten(), inside)
    x, y = (torch.cat(tensors) for tensors in zip(*data, strict=True))
    images = TensorImages(x[:, None, None], y, 1.0, (0.0,), (1.0,))
    before = fingerprint(model, data)
    evaluate(model, images, Ranks(CPU), Precision("float32", CPU))
    assert fingerprint(model, data) == before
    with pytest.raises(IndexError):
        evaluate(model, dataclasses.replace(images, labels=y + 5), Ranks(CPU), Precision("float32", CPU))
    assert fingerprint(model, data) == before


def test_top_5_needs_five_classes() -> None:
    images = DataConfig().load().test
    images = images.subset([i for i, label in enumerate(images.labels.tolist()) if label < 3])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert evaluate(model, images, Ranks(CPU), Precision("float32", CPU)).acc5 is None
