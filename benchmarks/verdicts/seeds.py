"""Many seeds of a few settings, by which comparisons are judged, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.runners.sweeps.grid import Grid
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.runners.sweeps.trials import Trial

TABLE = Path(__file__).parent / "seeds.csv"
"""Accuracies of the runs, as they were measured."""

SEEDS = 40
MODELS = ("mlp", "cnn")
RATES = {"sgd": ("0.05", "0.3"), "adamw": ("0.002", "0.02"), "lars": ("2", "16")}
"""Peak rates by optimizer: one at which digits are learned well in 54 updates, and one that is high."""

_SETTINGS = {
    "ds": "digits", "augmentation": "none", "val": "0.2", "bs": "64", "epochs": "3", "schedule": "cosine",
    "record": "none", "findings": "none", "train-eval-samples": "0", "checkpoint-every": "0", "devices": "cpu",
    "threads": "1",
}  # fmt: skip


def trials_in(folder: Path, seeds: int = SEEDS) -> list[Trial]:
    """The runs: ``seeds`` of each cell, the first seed of all cells first."""
    shared = {name: (value,) for name, value in _SETTINGS.items()}
    return [
        trial
        for seed in range(seeds)
        for optimizer, rates in RATES.items()
        for trial in build_trials(
            Grid(
                settings={**shared, "opt": (optimizer,), "seed": (str(seed),)},
                axes={"model": MODELS, "lr": rates},
            ),
            folder,
        )
    ]


def table_of(trials: Sequence[Trial]) -> pd.DataFrame:
    """A row per run: its cell (model, optimizer, rate), seed, status, and accuracies at the end in percent."""
    rows = []
    for trial in trials:
        run = open_run(trial.path)
        last = run.epochs(["val_acc1", "test_acc1"]).iloc[-1]
        rows.append(
            {
                "model": trial.config.model.name,
                "optimizer": trial.config.optimizer.name,
                "rate": trial.config.optimizer.lr,
                "seed": trial.config.seed,
                "status": run.status,
                "val_acc1": round(float(last["val_acc1"]), 3),
                "test_acc1": round(float(last["test_acc1"]), 3),
            }
        )
    return pd.DataFrame(rows).sort_values(["model", "optimizer", "rate", "seed"], ignore_index=True)
