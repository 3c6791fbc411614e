"""Sharpness on an accelerator is that of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import tvlars_probe
from tests.gpu.networks import OURS, batch, network, train

if TYPE_CHECKING:
    from pathlib import Path


def measured(device: torch.device, dtype: torch.dtype, **settings: Any) -> Any:
    return tvlars_probe.sharpness(network(device, dtype), cross_entropy, batch(device, dtype), **settings)


@pytest.mark.parametrize("bn_mode", ["eval", "train", "frozen-batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eigenvalues_are_those_of_the_cpu(bn_mode: Any, dtype: torch.dtype, device: torch.device) -> None:
    exact = measured(torch.device("cpu"), torch.float64, bn_mode=bn_mode, top=2, tol=1e-7)
    found = measured(device, dtype, bn_mode=bn_mode, top=2, tol=1e-5)
    for one, other in zip(exact.measurements, found.measurements, strict=True):
        assert other.converged
        assert other.check == "agrees"
        assert other.value == pytest.approx(one.value, abs=other.error + 1e-4 * abs(one.value))


def test_trace_and_density_hold_the_cpus(device: torch.device) -> None:
    exact = measured(torch.device("cpu"), torch.float64, trace=True, trace_matvecs=2000)
    found = measured(device, torch.float32, trace=True, density=True)
    trace = next(m for m in exact.measurements if m.measure == "trace")
    told = next(m for m in found.measurements if m.measure == "trace")
    assert told.low - 1e-3 <= trace.value <= told.high + 1e-3
    [density] = found.densities.values()
    assert (density.low <= density.density).all()
    # The whole of a density is 1.
    assert (density.density[1:] * (density.grid[1:] - density.grid[:-1])).sum() == pytest.approx(1, abs=0.02)


def test_a_probe_measures_in_training(device: torch.device, tmp_path: Path) -> None:
    model, (x, y) = network(device), batch(device)
    optimizer = OURS["LARS"](model.parameters())
    probe = tvlars_probe.SharpnessProbe(model, cross_entropy, (x, y), every=2, operators=("hessian", "effective"))
    with tvlars_probe.record(model, optimizer, tmp_path / "r", probes=[probe]) as rec:
        train(rec, model, optimizer, (x, y), steps=4)
    rows = tvlars_probe.open_run(tmp_path / "r").curvature()
    assert set(rows["step"]) == {0, 2}
    assert rows["converged"].astype(bool).all()
