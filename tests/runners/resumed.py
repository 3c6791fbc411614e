"""What an interrupted and resumed run is compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import tvlars_probe
from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from pathlib import Path

CLOCKS = ["run", "time", "step_seconds", "probe_seconds", "seconds", "created_at"]


def assert_same_run(
    whole: Path, other: Path, tables: tuple[str, ...] = ("steps", "layers", "epochs", "curvature")
) -> None:
    """Every row but for clock columns, and every weight of the last checkpoint."""
    runs = [tvlars_probe.open_run(path) for path in (whole, other)]
    assert [run.status for run in runs] == ["completed", "completed"]
    for table in tables:
        a, b = (run.frame(table).drop(columns=CLOCKS, errors="ignore") for run in runs)
        for name in a.select_dtypes("category"):
            a[name], b[name] = a[name].astype(str), b[name].astype(str)
        assert a.equals(b), table
    weights = [
        checkpoints.load(list(checkpoints.list_checkpoints(path).values())[-1])["model"] for path in (whole, other)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
