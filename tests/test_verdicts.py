"""The grid of paired runs, and what is made of its runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from benchmarks.verdicts import page, rule_tables, rules
from benchmarks.verdicts.features import features_of
from benchmarks.verdicts.grid import GRIDS, of_open_cells, train, trials_of
from benchmarks.verdicts.outcomes import CELL, IDENTITY, outcomes_of, truth_of
from tvlars_probe.analyses.warmup.features import named_features
from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.runners.sweeps.grid import Grid, read_grid
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from pathlib import Path

STEPS_PER_EPOCH = {"digits": math.ceil(1437 / 512), "fashion-mnist": math.ceil(10_000 / 512)}
SMALL = {"ds": "digits", "limit": "64", "bs": "32", "epochs": "2", "model": "mlp", "opt": "sgd",
         "schedule": "lars-warm", "devices": "cpu", "threads": "1"}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_each_file_is_a_grid_of_pairs_that_decay_alike(name: str, tmp_path: Path) -> None:
    grid = read_grid(str(GRIDS[name]))
    rates = [float(rate) for rate in grid.axes["lr"]]
    assert len(rates) == 5
    # Equal steps in the logarithm, but for rounding.
    steps = np.diff(np.log(rates))
    assert steps.min() > 0
    assert steps.max() / steps.min() < 1.35
    assert grid.axes["seeds"] == ("0", "1", "2")
    assert set(grid.axes) == {"lr", "warmup-epochs", "seeds"}
    one = Grid(axes={"lr": grid.axes["lr"][:1], "seeds": ("0",)})
    plain, warm = (trial.config for trial in build_trials(grid | one, tmp_path))
    assert (plain.schedule.warmup_epochs, plain.schedule.name, warm.schedule.name) == (0, "lars-warm", "lars-warm")
    # A fifth of the run is warm-up, as it is by default.
    assert warm.schedule.warmup_epochs == pytest.approx(warm.epochs / 5, rel=0.03)
    assert plain.batch_size == 512
    assert 155 <= plain.epochs * STEPS_PER_EPOCH[plain.data.name] <= 165
    data, model, optimizer = plain.data.name.split("-")[0], plain.model.name, plain.optimizer.name
    assert name == f"{data}-{model}-{optimizer}"


def test_other_seeds_replace_those_of_the_file(tmp_path: Path) -> None:
    trials = trials_of(["digits-mlp-sgd"], tmp_path, [3, 4])
    assert {trial.config.seed for trial in trials} == {3, 4}
    assert len({trial.path for trial in trials}) == len(trials) == 20


def test_further_seeds_are_of_the_cells_that_are_unknown(tmp_path: Path) -> None:
    trials = trials_of(["digits-mlp-sgd"], tmp_path, [3])
    truth = pd.DataFrame(
        [("digits", "mlp", "SGD", 0.06, "unknown"), ("digits", "mlp", "SGD", 0.02, "needed"),
         ("digits", "cnn", "SGD", 0.6, "unknown"), ("digits", "mlp", "LARS", 2.0, "unknown")],
        columns=[*CELL, "outcome"],
    )  # fmt: skip
    found = of_open_cells(trials, truth)
    assert [(trial.point["lr"], trial.point["warmup-epochs"]) for trial in found] == [("0.03", "0"), ("0.03", "11")]


def test_runs_are_trained_once_and_become_outcomes_and_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"warmup-epochs": ("0", "1"), "lr": ("0.05",), "seeds": ("0", "1")}
    trials = build_trials(Grid(settings={k: (v,) for k, v in SMALL.items()}, axes=axes), tmp_path)
    assert [end.status for end in train(trials, tmp_path, jobs=1)] == ["completed"] * 4
    assert capsys.readouterr().out.count("completed, best test accuracy") == 4
    runs = [open_run(trial.path) for trial in trials]
    begun = [run.manifest.created for run in runs]
    train(trials, tmp_path, jobs=1)
    runs = [open_run(trial.path) for trial in trials]
    assert [run.manifest.created for run in runs] == begun
    outcomes = outcomes_of(runs)
    assert outcomes["peak_lr"].tolist() == pytest.approx([0.05 * 32 / 256] * 4)
    assert outcomes["warmup_epochs"].tolist() == [0, 0, 1, 1]
    assert (outcomes["accuracy"] <= outcomes["best_accuracy"]).all()
    truth = truth_of(outcomes)
    assert truth["seeds"].tolist() == [2]
    gains = outcomes["accuracy"].to_numpy()[2:] - outcomes["accuracy"].to_numpy()[:2]
    assert truth["gain"].item() == pytest.approx(gains.mean())
    features = features_of(runs)
    assert list(features.columns) == [*IDENTITY, *(f.name for f in named_features())]
    assert features["late_loss"].notna().sum() == 0  # four updates have no late part
    assert features["first_update_ratio"].notna().all()


def rows(accuracy: dict[tuple[float, float], list[float]], diverged: tuple[float, float] | None = None) -> pd.DataFrame:
    """Outcomes by rate and length of warm-up, a value per seed."""
    return pd.DataFrame(
        [
            {"data": "digits", "model": "mlp", "optimizer": "SGD", "peak_lr": rate, "warmup_epochs": warm, "seed": seed,
             "status": "diverged" if (rate, warm) == diverged else "completed", "accuracy": value,
             "chance": 10.0}
            for (rate, warm), values in accuracy.items() for seed, value in enumerate(values)
        ]
    )  # fmt: skip


def test_pairs_are_of_one_seed_and_one_rate() -> None:
    truth = truth_of(
        rows(
            {
                (0.1, 0): [90.0, 80.0, 70.0], (0.1, 2): [93.0, 83.1, 72.9],  # seeds differ far more than pairs
                (1.0, 0): [10.0, 10.0, 10.0], (1.0, 2): [50.0, 60.0, 70.0],
                (9.0, 0): [90.0, 91.0, 92.0], (9.0, 2): [85.0, 86.1, 87.0],
                (20.0, 0): [10.0, 11.0, 10.0], (20.0, 2): [10.0, 10.0, 15.0],
            },
            diverged=(1.0, 0),
        )
    )  # fmt: skip
    assert truth["outcome"].tolist() == ["needed", "needed", "harmful", "never learned"]
    assert truth["gain"].tolist() == pytest.approx([3.0, 50.0, -4.9667, 1.3333], abs=1e-4)
    assert truth["diverged_without"].tolist() == [0, 3, 0, 0]
    assert truth["diverged_with"].tolist() == [0, 0, 0, 0]


def test_a_side_that_is_missing_is_no_pair() -> None:
    truth = truth_of(rows({(0.1, 0): [90.0, 80.0], (0.1, 2): [91.0]}))
    assert truth["seeds"].tolist() == [1]
    assert truth["outcome"].tolist() == ["unknown"]


def test_the_tables_and_the_lines_are_those_of_the_committed_outcomes() -> None:
    """Whoever changes either writes them again: python -m benchmarks.verdicts rules --write."""
    assert rule_tables.text() == page.written(rule_tables.COMMAND)
    assert rules.model_text() == rule_tables.MODEL.read_text(encoding="utf-8")


@pytest.mark.parametrize(("right", "said", "given"), [(19, 20, True), (18, 20, False), (3, 3, True), (0, 0, False)])
def test_the_package_says_nothing_that_was_wrong_too_often_elsewhere(right: int, said: int, given: bool) -> None:
    assert rules.is_trusted({"right": right, "said": said}) == given


def test_lines_are_fitted_where_an_answer_is_right_and_the_strictest_of_those_that_answer_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = {"made no difference": {"early_setback": True, "late_loss": True}}
    monkeypatch.setattr(rules, "LISTS", {"without": calm})
    # Warm-up made no difference wherever the loss neither rose by 0.1 nor ended above 0.2.
    cells = [(setback, late) for setback in (0.01, 0.02, 0.04, 0.3, 0.6, 0.9) for late in (0.01, 0.05, 0.1, 0.4, 0.8)]
    table = pd.DataFrame(
        [
            {"cell": f"{a} {b}", "early_setback": a, "late_loss": b, "full_rate_step": 0.01, "is_dead": False,
             "outcome": "made no difference" if a < 0.1 and b < 0.2 else "harmful"}
            for a, b in cells for _ in range(3)
        ]
    )  # fmt: skip
    (entry,) = rules.fit(table, "without")
    assert entry["answer"] == "made no difference"
    assert [(c["feature"], c["line"], c["at_most"]) for c in entry["conditions"]] == [
        ("early_setback", 0.05, True), ("late_loss", 0.1, True),
    ]  # fmt: skip
    said = rules.judged(table, [entry])["said"]
    assert (said == "made no difference").sum() == 27
    assert ((said == "made no difference") == (table["outcome"] == "made no difference")).all()
