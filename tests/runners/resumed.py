"""A model for runs that are interrupted and resumed, and what they are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

import tvlars_probe
from tvlars_probe.models import backbones
from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CLOCKS = ["run", "time", "step_seconds", "probe_seconds", "seconds", "created_at"]


def use_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one layer behind dropout in place of the `cnn`: random generators have to be right, and a step is short."""

    def small(channels: int, classes: int, _: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * channels, classes))

    monkeypatch.setitem(backbones.MODELS, "cnn", small)


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
