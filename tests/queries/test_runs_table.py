"""The table ``runs``: manifests as rows."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

import tvlars_probe
from tvlars_probe.queries.runs_table import RUNS, row_of
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def row(folder: Path, **facts: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    Manifest(run_id="r.id", **{"status": "completed", **facts}).save(folder)
    return row_of(tvlars_probe.open_run(folder))


def test_a_trained_runs_settings_and_results_are_there(trained: Callable[..., Path]) -> None:
    run = tvlars_probe.open_run(trained("tvlars", "lars-warm"))
    told = row_of(run)
    assert (told["run"], told["name"], told["status"]) == (run.manifest.run_id, run.path.name, "completed")
    assert (told["optimizer"], told["schedule"], told["data"]) == ("TVLARS", "lars-warm", "digits")
    assert (told["lr"], told["lmbda"], told["momentum"], told["epochs"]) == (8.0, 0.05, 0.9, 8)
    assert told["peak_lr"] == 8.0 * 48 / 256
    assert told["warmup_epochs"] == 8 / 5  # the schedule's own choice: none was asked for
    epochs = run.epochs()
    assert told["best_test_acc1"] == epochs["test_acc1"].max()
    assert told["final_test_acc1"] == epochs["test_acc1"].iloc[-1]
    assert told["final_epoch"] == 7
    assert json.loads(told["config"])["optimizer"]["nesterov"] is False


def test_what_a_loop_of_ones_own_doesnt_tell_is_null(tmp_path: Path) -> None:
    told = row(tmp_path / "r", config={"optimizer": "mine", "schedule": 3, "epochs": "many", "mode": ["x"]})
    known = {name for name, value in told.items() if value is not None}
    assert known == {"run", "name", "path", "status", "created", "config"}
    assert {*told} == {*RUNS.names}


def test_the_group_is_the_first_that_holds_a_parameter(tmp_path: Path) -> None:
    groups = [{"optimizer": "SGD", "parameters": 0}, {"optimizer": "LAMB", "parameters": 3, "eta": 0.5}]
    told = row(tmp_path / "r", groups=groups)
    assert (told["optimizer"], told["eta"]) == ("LAMB", 0.5)


def test_figures_that_json_lacks_and_times_that_are_none(tmp_path: Path) -> None:
    told = row(
        tmp_path / "r", peak_lr=math.inf, final={"test_loss": "nan", "epoch": 3}, seed=(1 << 63) - 1, created="today"
    )
    assert told["peak_lr"] == math.inf
    assert math.isnan(told["final_test_loss"])
    assert (told["final_epoch"], told["seed"], told["created"]) == (3, (1 << 63) - 1, None)
    [answer] = tvlars_probe.query("select peak_lr, final_test_loss, seed from runs", tmp_path).to_dict("records")
    assert (answer["peak_lr"], answer["seed"]) == (math.inf, (1 << 63) - 1)
    assert math.isnan(answer["final_test_loss"])


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        ({"name": "cosine", "warmup_epochs": None}, 0.0),
        ({"name": "lars-warm", "warmup_epochs": 2.5}, 2.5),
        ({"name": "lars-warm", "warmup_epochs": None}, 20.0),
        ({}, None),
    ],
    ids=["none of it", "asked for", "by default", "unknown"],
)
def test_epochs_of_warm_up(schedule: dict[str, Any], epochs: float | None, tmp_path: Path) -> None:
    assert row(tmp_path / "r", config={"schedule": schedule, "epochs": 300})["warmup_epochs"] == epochs


def test_quotes_and_odd_names_pass_whole(tmp_path: Path) -> None:
    name = 'it\'s a "run" 100% ?é'
    row(tmp_path / name, config={"note": "a'b"}, data={"name": "x';drop", "train": 1, "val": 0, "test": 0})
    [answer] = tvlars_probe.query("select name, data, config->>'note' as note from runs", tmp_path).to_dict("records")
    assert answer == {"name": name, "data": "x';drop", "note": "a'b"}
