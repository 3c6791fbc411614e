from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, net
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn


def backward(model: nn.Module, step: int) -> None:
    x, y = batch(step)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()


def norm(tensors: Sequence[Tensor]) -> float:
    """‖g‖ in float64, by another route than the recorder's."""
    return float(torch.cat([p.grad.double().flatten() for p in tensors if p.grad is not None]).norm())


@pytest.mark.parametrize("max_norm", [0.05, 1e3], ids=["clipped", "let through"])
def test_the_norm_before_and_the_factor_are_recorded_and_torchs_clipping_is_made(
    max_norm: float, tmp_path: Path
) -> None:
    ours, theirs = net(), net()
    optimizers = [OPTIMIZERS["sgd"](model.parameters()) for model in (ours, theirs)]
    before, after = [], []
    with tvlars_probe.record(ours, optimizers[0], tmp_path / "r") as rec:
        for step in range(3):
            backward(ours, step)
            backward(theirs, step)
            before.append(norm([*ours.parameters()]))
            told = rec.clip_grad_norm_(ours.parameters(), max_norm)
            assert torch.equal(told, clip_grad_norm_(theirs.parameters(), max_norm))
            after.append(norm([*ours.parameters()]))
            for optimizer in optimizers:
                optimizer.step()
            rec.log()
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    np.testing.assert_allclose(steps["grad_norm_before_clipping"], before, rtol=1e-6)
    np.testing.assert_allclose(steps["clip_scale"], np.divide(after, before), rtol=1e-6)
    np.testing.assert_allclose(steps["grad_norm"], after, rtol=1e-6)
    assert (steps["clip_scale"] == 1).all() == (max_norm == 1e3)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_calls_for_several_sets_of_tensors_are_taken_together(tmp_path: Path) -> None:
    """Of two optimizers, one clips before and one after the other's step."""
    model = net()
    halves = [[*model[:2].parameters()], [*model[2:].parameters()]]
    optimizers = [OPTIMIZERS["sgd"](half) for half in halves]
    with tvlars_probe.record(model, optimizers, tmp_path / "r") as rec:
        backward(model, 0)
        before = norm([*model.parameters()])
        for half, optimizer, max_norm in zip(halves, optimizers, (0.01, 0.03), strict=True):
            rec.clip_grad_norm_(half, max_norm)
            optimizer.step()
        after = norm([*model.parameters()])
        rec.log()
    (row,) = tvlars_probe.open_run(tmp_path / "r").steps().itertuples()
    assert row.grad_norm_before_clipping == pytest.approx(before, rel=1e-6)
    assert row.clip_scale == pytest.approx(after / before, rel=1e-6)


@pytest.mark.parametrize("tells", [True, False])
def test_a_step_that_was_skipped_leaves_its_clipping_to_no_other(tells: bool, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step in range(3):
            backward(model, step)
            expected = norm([*model.parameters()])
            rec.clip_grad_norm_(model.parameters(), 0.05)
            if step == 1:  # as a gradient scaler does that has found an overflow
                if tells:
                    rec.log()
                continue
            optimizer.step()
            rec.log()
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert len(steps) == 2
    assert steps["grad_norm_before_clipping"].iloc[1] == pytest.approx(expected, rel=1e-6)


def test_a_step_without_clipping_after_one_that_was_skipped_has_none(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        backward(model, 0)
        rec.clip_grad_norm_(model.parameters(), 0.05)
        rec.log()
        backward(model, 1)
        optimizer.step()
        rec.log()
    assert tvlars_probe.open_run(tmp_path / "r").steps()["clip_scale"].isna().all()


def test_another_norm_is_not_taken_for_the_euclidean_one(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        backward(model, 0)
        before = norm([*model.parameters()])
        rec.clip_grad_norm_(model.parameters(), 0.01, norm_type=float("inf"))
        after = norm([*model.parameters()])
        optimizer.step()
        rec.log()
    (row,) = tvlars_probe.open_run(tmp_path / "r").steps().itertuples()
    assert np.isnan(row.grad_norm_before_clipping)
    assert row.clip_scale == pytest.approx(after / before, rel=1e-6)


@pytest.mark.parametrize("by", ["the recorder", "somebody else"])
def test_gradients_that_are_no_numbers_are_not_said_to_be_left_as_they_were(by: str, tmp_path: Path) -> None:
    """torch multiplies them by NaN."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        backward(model, 0)
        model[0].weight.grad[0, 0, 0, 0] = torch.nan
        if by == "the recorder":
            rec.clip_grad_norm_(model.parameters(), 1.0)
        else:
            rec.read_norm_before_clipping(model.parameters())
            clip_grad_norm_(model.parameters(), 1.0)
        assert all(p.grad.isnan().all() for p in model.parameters())
        optimizer.step()
        rec.log()
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert steps[["grad_norm_before_clipping", "clip_scale"]].isna().all(axis=None)


def test_what_the_loop_tells_comes_first_and_zero_gradients_are_scaled_by_one(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for told in (None, 0.25):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            rec.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rec.log(clip_scale=told)
    assert tvlars_probe.open_run(tmp_path / "r").steps()["clip_scale"].tolist() == [1.0, 0.25]
    with pytest.raises(UserError, match="isn't recording"):
        rec.clip_grad_norm_(model.parameters(), 1.0)


def test_sparse_and_complex_gradients_count_in_the_norm_before_clipping(tmp_path: Path) -> None:
    """As Lightning clips them: elsewhere, after the recorder has read their norm."""
    torch.manual_seed(0)
    words, phases = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Parameter(torch.randn(4, dtype=torch.complex64))
    params = [words.weight, phases]
    optimizer = torch.optim.SGD(params, lr=0.1)
    with tvlars_probe.record(None, optimizer, tmp_path / "run") as rec:
        (words(torch.tensor([1, 1, 2])).square().sum() + phases.abs().square().sum()).backward()
        rec.read_norm_before_clipping(params)
        # torch 2.6 itself clips no sparse gradient.
        grads = [p.grad for p in params if p.grad is not None]
        norm = sum(float(grad.to_dense().abs().square().sum()) for grad in grads) ** 0.5
        for grad in grads:
            grad.mul_(0.5 / norm)
        optimizer.step()
        rec.log()
    (row,) = tvlars_probe.open_run(tmp_path / "run").steps().itertuples()
    assert row.grad_norm_before_clipping == pytest.approx(norm, rel=1e-6)
    assert (row.clip_scale, row.grad_norm) == pytest.approx((0.5 / norm, 0.5), rel=1e-5)
