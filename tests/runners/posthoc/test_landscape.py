"""Slices through the loss, against losses computed by hand."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.errors import UserError
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.posthoc.landscape import (
    LandscapeJob,
    _estimate_statistics,
    _set_buffers,
    filter_normalised,
    measure_landscape,
)
from tvlars_probe.runners.posthoc.restored_state import choose_checkpoints, load_config, restore_state
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

CPU = PlaceConfig(devices=("cpu",), threads=1)
WHOLE = 192  # images of the runs' training data


def slice_of(run: Path, **settings: Any) -> pd.DataFrame:
    name = measure_landscape(LandscapeJob(run=run, place=CPU, samples=WHOLE, **settings))
    rows = tvlars_probe.open_run(run).frame("landscape")
    return rows[rows["measurement_id"] == name].reset_index(drop=True)


@pytest.mark.parametrize("command", [
    ("landscape", "first", "--points", "3"), ("landscape", "first", "--points", "3", "--bn", "re-estimated"),
    ("sharpness", "first", "--epsilon", "--trace"), ("sharpness", "first", "--engine", "pyhessian"),
], ids=" ".join)  # fmt: skip
def test_what_measures_a_finished_run_changes_nothing_but_its_own_table(
    run: Path, cli: Callable[..., Any], command: tuple[str, ...]
) -> None:
    def around() -> list[Any]:
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and command[0] not in path.parts}
        numpy = np.random.get_state()[1]
        return [files, torch.get_rng_state().tolist(), numpy.tolist(), random.getstate(), torch.get_default_dtype()]

    before = around()
    assert cli(*command, "--devices", "cpu", "--samples", 40).code == 0
    assert around() == before


def loss_by_hand(run: Path, move: Callable[[nn.Module], None] | None = None) -> float:
    """Of the last checkpoint, in one batch and float64."""
    config = load_config(run)
    data = config.data.load()
    path = choose_checkpoints(run, "last")[-1]
    model = restore_state(config, data, path, device=torch.device("cpu"), dtype=torch.float64).model.eval()
    if move is not None:
        move(model)
    x, y = data.train.batch(torch.arange(WHOLE), torch.float64)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


@pytest.fixture
def run(trained: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(trained("lars"), tmp_path / "first")


@pytest.fixture
def run2(trained: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(trained("lars", seed=1), tmp_path / "second")


def test_filters_of_a_direction_have_the_norms_of_the_weights_filters_and_vectors_stay() -> None:
    weights = {"conv": torch.randn(6, 3, 2, 2), "linear": torch.randn(4, 9) * 5, "bias": torch.randn(4)}
    weights["conv"][2] = 0
    direction = filter_normalised(weights, seed=3)
    for name in ("conv", "linear"):
        ours, theirs = (t.flatten(1).norm(dim=1) for t in (direction[name], weights[name]))
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-20)
    assert not direction["bias"].any()
    assert torch.equal(filter_normalised(weights, seed=3)["conv"], direction["conv"])
    assert not torch.equal(filter_normalised(weights, seed=4)["conv"], direction["conv"])


@pytest.mark.parametrize("scale", [2.0**70, 2.0**-70])
def test_filters_whose_squares_float32_does_not_hold_have_their_norms_too(scale: float) -> None:
    weights = {"linear": torch.randn(4, 9, generator=torch.Generator().manual_seed(0))}
    usual = filter_normalised(weights, seed=3)["linear"]
    extreme = filter_normalised({"linear": weights["linear"] * scale}, seed=3)["linear"]
    torch.testing.assert_close(extreme / scale, usual, rtol=1e-6, atol=0)


def test_a_slice_passes_through_the_checkpoint_and_follows_its_direction(run: Path) -> None:
    rows = slice_of(run, points=4, span=0.5, seed=7)
    assert rows["alpha"].tolist() == pytest.approx([-0.5, -1 / 6, 0, 1 / 6, 0.5])
    assert rows["beta"].isna().all()
    assert rows["loss"][2] == pytest.approx(loss_by_hand(run), rel=1e-5)

    def move(model: nn.Module) -> None:
        single = {name: p.detach().float() for name, p in model.named_parameters()}
        direction = filter_normalised(single, seed=7)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(0.5 * direction[name].double())

    assert rows["loss"][4] == pytest.approx(loss_by_hand(run, move), rel=1e-4)


def test_a_plane_holds_the_slice_of_its_first_direction(run: Path) -> None:
    line, plane = slice_of(run, points=3), slice_of(run, points=3, dimensions=2)
    assert len(plane) == 9
    assert plane[plane["beta"] == 0]["loss"].tolist() == pytest.approx(line["loss"].tolist(), rel=1e-6)


def test_a_line_runs_from_one_end_to_the_other_and_beyond(run: Path, run2: Path) -> None:
    rows = slice_of(run, run2=run2, points=5, span=0.25).set_index("alpha")
    assert rows.index.min() == -0.25
    assert rows.index.max() == 1.25
    assert rows["loss"][0.0] == pytest.approx(loss_by_hand(run), rel=1e-5)
    assert rows["loss"][1.0] == pytest.approx(loss_by_hand(run2), rel=1e-5)
    assert {*rows["run2"].astype(str)} == {Manifest.load(run2).run_id}


def test_nothing_of_the_run_but_its_landscape_changes(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    slice_of(run, points=3)
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.parent.name != "landscape"}
    assert after == before
    slice_of(run, points=3, seed=1)
    assert tvlars_probe.open_run(run).frame("landscape")["measurement_id"].nunique() == 2


def test_re_estimated_statistics_are_those_of_the_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.1), nn.Dropout(0.5)).eval()
    batches = [(torch.randn(10, 3), torch.zeros(10)) for _ in range(3)]
    _estimate_statistics(model, batches)
    hidden = [model[0](x).detach() for x, _ in batches]
    norm = model[1]
    assert torch.allclose(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0), atol=1e-6)
    assert norm.momentum == 0.1
    assert not any(m.training for m in model.modules())


def test_interpolated_statistics_lie_on_the_line_and_variances_never_below_zero() -> None:
    model = nn.BatchNorm1d(2)
    first = {"running_mean": torch.tensor([0.0, 2.0]), "running_var": torch.tensor([1.0, 4.0])}
    second = {"running_mean": torch.tensor([4.0, 2.0]), "running_var": torch.tensor([3.0, 1.0])}
    _set_buffers(model, first, second, 0.25)
    assert model.running_mean.tolist() == [1.0, 2.0]
    assert model.running_var.tolist() == [1.5, 3.25]
    _set_buffers(model, first, second, 1.5)
    assert model.running_var.tolist() == [4.0, 0.0]
    _set_buffers(model, first, {}, 1.5)
    assert model.running_mean.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": 3}, "allowed: 1 or 2"),
        ({"points": 1001}, "allowed: 3 to 1000"),
        ({"span": -1.0}, "0 or more"),
        ({"span": float("inf")}, "--span inf is outside its range"),
        ({"span": float("nan")}, "--span nan is outside its range"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        LandscapeJob(run=tmp_path, **settings)


def test_the_same_run_twice_is_no_line(run: Path) -> None:
    with pytest.raises(UserError, match="is given twice"):
        LandscapeJob(run=run, run2=run.parent / "." / run.name / ".." / run.name)


def test_a_run_of_another_loop_is_refused_without_advice_that_does_not_apply(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with tvlars_probe.record(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "own"):
        pass
    with pytest.raises(UserError, match="Slices can be computed of runs that tvlars-probe train made") as refused:
        measure_landscape(LandscapeJob(run=tmp_path / "own", place=CPU))
    assert "--model" not in str(refused.value)


def test_a_step_without_checkpoint_is_refused_and_nothing_is_written(run: Path, run2: Path) -> None:
    with pytest.raises(UserError, match="a step of"):
        measure_landscape(LandscapeJob(run=run, run2=run2, checkpoint="77", place=CPU))
    assert not (run / "landscape").exists()


def test_a_slice_is_around_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--checkpoint all: a slice is around one checkpoint"):
        LandscapeJob(run=tmp_path, checkpoint="all")
    with pytest.raises(UserError, match=r"unknown --bn 'frozen' \(known: interpolated, re-estimated\)"):
        LandscapeJob(run=tmp_path, bn_mode="frozen")


def test_a_slice_of_a_float64_run_is_of_its_own_weights(
    trained: Callable[..., Path], tmp_path: Path, run2: Path
) -> None:
    wide = shutil.copytree(trained("lars", precision="float64"), tmp_path / "wide")
    rows = slice_of(wide, points=3)
    exact = loss_by_hand(wide)
    assert rows["loss"][rows["alpha"] == 0].item() == pytest.approx(exact, rel=1e-12)
    assert {*rows["precision"].astype(str)} == {"float64"}
    line = slice_of(wide, points=3, run2=run2)
    assert line["loss"][line["alpha"] == 0].item() == pytest.approx(exact, rel=1e-12)
    assert line["loss"][line["alpha"] == 1].item() == pytest.approx(loss_by_hand(run2), rel=1e-12)
    assert {*slice_of(run2, points=3)["precision"].astype(str)} == {"float32"}
