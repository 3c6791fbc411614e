"""A training with the probe is that without it, bit for bit, whatever a forward or backward pass does to the model."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.zoo import ZOO, member

if TYPE_CHECKING:
    from pathlib import Path

ONLY_ONCE = "embedding bag with max_norm"
"""torch can't differentiate this one twice: there the probe fails, and the training goes on."""


def trained(name: str, folder: Path, bn_mode: str | None) -> tuple[list[Tensor], Any]:
    """All tensors of a member after some steps, and the state of the generators; without a mode there is no probe."""
    model, data = member(name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9)
    fixed = (torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)
    probes = [
        tvlars_probe.SharpnessProbe(
            model,
            F.cross_entropy,
            fixed,
            every=1,
            operators=("hessian", "effective", "relative"),
            measures=("eigenvalue", "batch", "directional", "critical"),
            batch_size=4,
            bn_mode=mode,
            tol=0.1,
        )
        for mode in [bn_mode]
        if mode is not None
    ]
    with tvlars_probe.record(model, optimizer, folder / f"{bn_mode}", probes=probes) as rec:
        for step in range(4):
            x, y = data[step % 2]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.clone()), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=len(x))
    if probes and name != ONLY_ONCE:
        assert tvlars_probe.open_run(rec.path).curvature().step.nunique() == 4
    return tensors(model), (torch.rand(3).tolist(), random.random(), np.random.rand())


def tensors(model: nn.Module) -> list[Tensor]:
    plain = [value for module in model.modules() for value in module.__dict__.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers(), *plain]


CASES = [(name, "train") for name in ZOO] + [("batch norm without momentum", mode) for mode in ("eval", "frozen-batch")]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_probed_training_is_bit_identical(name: str, mode: str, tmp_path: Path) -> None:
    random.seed(0)
    np.random.seed(0)
    without, generators = trained(name, tmp_path, None)
    random.seed(0)
    np.random.seed(0)
    fails = pytest.warns(RuntimeWarning, match="not implemented") if name == ONLY_ONCE else contextlib.nullcontext()
    with fails:
        found = trained(name, tmp_path, mode)
    assert all(torch.equal(a, b) for a, b in zip(found[0], without, strict=True))
    assert found[1] == generators


def test_a_loss_that_is_no_mean_is_refused_before_the_first_update(tmp_path: Path) -> None:
    model, data = member("lstm")
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    probe = tvlars_probe.SharpnessProbe(model, loss, data, every=1)
    with (
        pytest.raises(tvlars_probe.errors.UserError, match="isn't the mean over its samples"),
        tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe]),
    ):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_probe_measures_by_weights(tmp_path: Path) -> None:
    model, data = member("lstm")
    counts = torch.tensor([1.0, 2.0, 9.0])
    loss = torch.nn.CrossEntropyLoss(weight=counts)
    asked: dict[str, Any] = {"every": 1, "bn_mode": "eval", "tol": 1e-5}
    by_weights = tvlars_probe.SharpnessProbe(model, loss, data, weights=lambda batch: counts[batch[1]].sum(), **asked)
    whole = tvlars_probe.SharpnessProbe(model, loss, tuple(map(torch.cat, zip(*data, strict=True))), **asked)
    rows = [probe.measure(0, "train", None) for probe in (by_weights, whole)]
    assert rows[0]["value"] == pytest.approx(rows[1]["value"], rel=1e-4)
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-6)
