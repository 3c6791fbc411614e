"""What a loop may tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tvlars_probe.errors import UserError
from tvlars_probe.probes.readers.told import count

if TYPE_CHECKING:
    from pathlib import Path


def test_figures_may_be_tensors_and_arrays_and_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(1))
        rec.log(loss=torch.tensor([1.0]), samples=torch.tensor(16), clip_scale=torch.tensor(0.5))  # type: ignore[arg-type]
        rec.log_epoch(epoch=0, train_loss=torch.tensor(0.25), test_loss=np.float32(0.5))  # type: ignore[arg-type]
        loop(model, optimizer, range(1, 2))
        with pytest.raises(UserError, match=r"samples=1e\+30 is no count: give a whole number from 0 to 2\*\*63 - 1"):
            rec.log(samples=10**30)
        with pytest.raises(UserError, match="clip_scale='half' is no number"):
            rec.log(clip_scale="half")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="mean loss, one number"):
            rec.log(loss=torch.ones(3))
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.steps().clip_scale.iloc[0] == 0.5
    assert run.manifest.final["test_loss"] == 0.5


@pytest.mark.parametrize(
    "told",
    [
        {"loss": "a"}, {"loss": 1j}, {"loss": [1.0]}, {"loss": torch.tensor(1j)}, {"samples": -3}, {"samples": 2.5},
        {"epoch": -1}, {"epoch": "x"}, {"epoch": 1 << 70}, {"clip_scale": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_figures_that_are_none_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(1))
        with pytest.raises(UserError):
            rec.log(**told)
        if "epoch" in told:
            with pytest.raises(UserError):
                rec.log_epoch(**told)
        with pytest.raises(UserError, match="step isn't told"):
            rec.log_epoch(epoch=0, step=7)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 1


def test_counts_may_be_arrays_of_one_element_and_keep_their_digits() -> None:
    assert [count("samples", told) for told in (np.array([16]), torch.tensor([16]), np.int64(16))] == [16, 16, 16]
    assert count("samples", 2**53 + 1) == 2**53 + 1
