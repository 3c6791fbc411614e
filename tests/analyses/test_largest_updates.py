from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.analyses.largest_updates import COLUMNS, largest_updates
from tvlars_probe.analyses.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def recorded(path: Path, steps: int = 30, zeroed: int | None = None) -> tvlars_probe.Run:
    """A run whose second layer has far too high a rate in step 7. The weight of layer ``zeroed`` begins at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4), nn.Linear(4, 1))
    if zeroed is not None:
        nn.init.zeros_(model[zeroed].weight)  # type: ignore[arg-type]
    groups = [{"params": layer.parameters()} for layer in model if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    inputs = torch.randn(64, 8)
    with tvlars_probe.record(model, optimizer, path, findings="none") as rec:
        for step in range(steps):
            optimizer.param_groups[1]["lr"] = 20.0 if step == 7 else 0.01
            loss = model(inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss)
            if step % 4 == 3:
                rec.flush()
    return tvlars_probe.open_run(path)


def by_hand(run: tvlars_probe.Run, most: int) -> pd.DataFrame:
    rows = run.layers(COLUMNS).astype({"parameter": str})
    rows = rows[rows["parameter"].str.endswith("weight") & (rows["weight_norm"] > 0)]
    rows["update_ratio"] = rows["update_norm"] / rows["weight_norm"].astype(float)
    top = rows.loc[rows.groupby("parameter")["update_ratio"].idxmax()]
    return top.sort_values("update_ratio", ascending=False).head(most).reset_index(drop=True)


def test_they_are_the_maxima_of_all_rows(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    for most in (1, 2, 5):
        found = largest_updates(Source(run), most=most)
        pd.testing.assert_frame_equal(found, by_hand(run, most), check_dtype=False)
    assert (found["parameter"][0], found["step"][0]) == ("2.weight", 7)
    assert len(found) == 3


def test_a_weight_of_zeros_comes_first(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", zeroed=2)
    found = largest_updates(Source(run), most=3)
    assert found[["parameter", "step", "weight_norm", "update_ratio"]].iloc[0].tolist() == [
        "2.weight",
        0,
        0.0,
        math.inf,
    ]
    assert found["update_norm"][0] > 0
    assert len(found) == 3


def test_batches_of_any_size_say_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    run = recorded(tmp_path / "run")
    expected = largest_updates(Source(run), most=2)
    monkeypatch.setattr("tvlars_probe.traces.reader.BATCH_ROWS", 5)
    pd.testing.assert_frame_equal(largest_updates(Source(run), most=2), expected)


def test_without_norms_of_updates_there_are_none(trained: Callable[..., Path]) -> None:
    run = tvlars_probe.open_run(trained("lars"))
    has_any = bool(run.layers(["update_norm"])["update_norm"].notna().any())
    assert (len(largest_updates(Source(run))) > 0) == has_any
