from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.analyses.layer_figures import layer_figure
from tvlars_probe.analyses.source import Source

if TYPE_CHECKING:
    from pathlib import Path


def recorded(folder: Path, steps: int = 21, *, width: int = 3, rate: float = 0.1, **how: Any) -> Source:
    """AdaGrad's ‖Δw‖ takes a copy of the weights."""
    torch.manual_seed(0)
    model = nn.Linear(5, width)
    optimizer = torch.optim.Adagrad(model.parameters(), rate)
    with tvlars_probe.record(model, optimizer, folder, **how):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
    return Source(tvlars_probe.open_run(folder))


def test_updates_are_relative_to_the_weights_and_to_the_number_of_elements(tmp_path: Path) -> None:
    """Adagrad's first step is lr in every element: so its root mean square is lr."""
    source = recorded(tmp_path / "r", 3)
    rows = source.trace.layers().set_index(["step", "parameter"])
    grid, relative = layer_figure("relative_update", source)
    _, rms = layer_figure("update_rms", source)
    assert rms[0].tolist() == pytest.approx([0.1, 0.1], rel=1e-5)
    for i, step in enumerate(grid.steps):
        for k, (name, n) in enumerate(zip(grid.parameters, (15, 3), strict=True)):
            row = rows.loc[(step, name)]
            assert relative[i, k] == pytest.approx(row["update_norm"] / row["weight_norm"], rel=1e-6)
            assert rms[i, k] == pytest.approx(row["update_norm"] / math.sqrt(n), rel=1e-6)


@pytest.mark.parametrize("quantity", ["weight_spectral_norm", "update_spectral_norm"])
def test_steps_in_which_a_figure_was_not_read_are_left_out(tmp_path: Path, quantity: str) -> None:
    grid, values = layer_figure(quantity, recorded(tmp_path / "r", spectral_every=10))
    assert grid.steps.tolist() == [0, 10, 20]
    assert grid.parameters == ("weight", "bias")
    assert np.isfinite(values[:, 0]).all()
    assert np.isnan(values[:, 1]).all()


def test_updates_of_large_models_are_those_of_one_step_in_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.probes.readers.norms.SNAPSHOT_ELEMENTS", 2)
    source = recorded(tmp_path / "r")
    for quantity in ("relative_update", "update_rms"):
        grid, values = layer_figure(quantity, source)
        assert grid.steps.tolist() == [0, 10, 20]
        assert np.isfinite(values).all()
    assert len(layer_figure("grad_norm", source)[0].steps) == 21


@pytest.mark.filterwarnings("ignore")
def test_steps_without_a_finite_weight_stay(tmp_path: Path) -> None:
    """There the figure is lost, which a chart shows, and not left out by choice."""
    source = recorded(tmp_path / "r", 6, rate=math.inf)
    grid, values = layer_figure("relative_update", source)
    assert grid.steps.tolist() == [*range(6)]
    assert not np.isfinite(values[1:]).any()


def test_a_zero_weight_has_an_infinite_relative_update(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r"):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    _, values = layer_figure("relative_update", Source(tvlars_probe.open_run(tmp_path / "r")))
    assert np.isinf(values[0, 0])
