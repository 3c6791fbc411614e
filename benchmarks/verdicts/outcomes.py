"""How each run of the grid ended, and what warm-up changed at each peak rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses.of_runs import last_accuracy
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.warmup.paired_gain import outcomes_by_cell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.runs import Run

CELL = ["data", "model", "optimizer", "peak_lr"]
"""What the runs of a cell have in common: they differ in seed and in warm-up."""


IDENTITY = ["run", *CELL, "schedule", "warmup_epochs", "seed"]
"""The columns by which outcomes and features are joined."""


def identity_of(run: Run) -> dict[str, object]:
    """What a run is: its values of `IDENTITY`."""
    facts = Source(run).facts
    values = [
        facts.name, facts.data, facts.model, facts.optimizer, facts.peak_lr, facts.schedule,
        facts.config["schedule"]["warmup_epochs"], facts.seed,
    ]  # fmt: skip
    return dict(zip(IDENTITY, values, strict=True))


def outcomes_of(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per run: what it is, and how it ended.

    ``accuracy`` is the test accuracy after the last update, ``best_accuracy`` the highest of any epoch, ``chance`` that
    of equal guesses, all in percent. A run that diverged has no weights left to predict by: its accuracy is chance.
    """
    rows = []
    for run in runs:
        facts, accuracy = Source(run).facts, Source(run).epochs(["test_acc1"])
        chance = facts.chance
        assert chance is not None
        last = chance if facts.status == "diverged" else last_accuracy(accuracy)
        best = accuracy["test_acc1"].max()
        rows.append(
            {**identity_of(run), "status": facts.status, "accuracy": last, "best_accuracy": best, "chance": chance}
        )
    return pd.DataFrame(rows).sort_values([*CELL, "warmup_epochs", "seed"], ignore_index=True)


def truth_of(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: what warm-up changed there, over the seeds that both of its sides have.

    See `tvlars_probe.analyses.warmup.paired_gain.outcomes_by_cell`.
    """
    keys = [*CELL, "seed", "chance"]
    wanted = outcomes.assign(diverged=outcomes["status"] == "diverged")[
        [*keys, "warmup_epochs", "accuracy", "diverged"]
    ]
    is_plain = wanted["warmup_epochs"] == 0
    pairs = wanted[is_plain].merge(wanted[~is_plain], on=keys, suffixes=("_without", "_with"), validate="one_to_one")
    pairs["gain"] = pairs["accuracy_with"] - pairs["accuracy_without"]
    return outcomes_by_cell(pairs, CELL)
