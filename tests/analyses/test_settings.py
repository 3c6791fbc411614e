"""Settings of runs, and means over their seeds, beside means that are worked out by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.settings import Setting, over_seeds, representative, settings_of


def run(name: str, **further: Any) -> RunFacts:
    return RunFacts(**{"name": name, "optimizer": "LARS", "seed": 0, "peak_lr": 8.0, **further})


def setting(*runs: RunFacts) -> Setting:
    (only,) = settings_of(runs)
    return only


def curve(*values: float, steps: list[int] | None = None, **further: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": steps or [*range(len(values))], "value": [*values], **further})


def test_runs_that_differ_in_their_seed_alone_are_one_setting() -> None:
    found = settings_of([run("a"), run("b", seed=1), run("c", peak_lr=32.0), run("d", seed=2)])
    assert [(s.label, s.rate, s.places) for s in found] == [("LARS", 8, (0, 1, 3)), ("LARS", 32, (2,))]


def test_a_label_holds_what_tells_settings_apart_and_nothing_else() -> None:
    found = settings_of(
        [
            run("a", batch_size=512, lmbda=None),
            run("b", batch_size=1024, schedule="lars-warm"),
            run("c", batch_size=512, optimizer="TVLARS", lmbda=0.01),
            run("d", batch_size=512, optimizer="TVLARS", lmbda=0.1),
            run("e", batch_size=512, optimizer="TVLARS", lmbda=0.1, epochs=30),
        ]
    )
    assert [s.label for s in found] == [
        "LARS, batch 512",
        "LARS, lars-warm, batch 1024",
        "TVLARS, λ 0.01, batch 512",
        "TVLARS, λ 0.1, batch 512, epochs unset",
        "TVLARS, λ 0.1, batch 512, epochs 30",
    ]
    assert [s.label for s in settings_of([run("a", batch_size=512)])] == ["LARS"]


def test_a_run_without_a_seed_is_a_setting_by_itself() -> None:
    assert [s.places for s in settings_of([run("a", seed=None), run("b", seed=None)])] == [(0,), (1,)]
    assert settings_of([]) == []


def test_the_mean_and_the_band_are_those_of_the_seeds_at_each_step() -> None:
    values = np.random.default_rng(0).uniform(1, 9, (3, 5))
    frame = over_seeds(setting(*(run(str(k), seed=k) for k in range(3))), [curve(*row) for row in values], "step")
    for step, row in enumerate(frame.to_dict("records")):
        seeds = [float(v) for v in values[:, step]]
        assert row["value"] == pytest.approx(statistics.fmean(seeds))
        assert (row["low"], row["high"], row["seeds"]) == (min(seeds), max(seeds), 3)


def test_a_geometric_mean_is_that_of_logarithms_and_zero_beside_a_zero() -> None:
    three = setting(*(run(str(k), seed=k) for k in range(3)))
    frame = over_seeds(three, [curve(1, 5.0), curve(10, 5.0), curve(1000, 0.0)], "step", geometric=True)
    assert frame["value"].tolist() == pytest.approx([statistics.geometric_mean([1, 10, 1000]), 0])


def test_runs_that_diverged_count_only_where_all_did() -> None:
    gone = {"status": "diverged"}
    curves = [curve(2, 2), curve(1e9, 1e30)]
    assert over_seeds(setting(run("a"), run("b", seed=1, **gone)), curves, "step")["value"].tolist() == [2, 2]
    both = setting(run("a", **gone), run("b", seed=1, **gone))
    assert both.diverged
    assert over_seeds(both, curves, "step")["value"].tolist() == [(2 + 1e9) / 2, (2 + 1e30) / 2]


def test_runs_of_one_seed_count_as_one() -> None:
    frame = over_seeds(setting(run("a"), run("b"), run("c", seed=1)), [curve(1), curve(3), curve(6)], "step")
    assert frame["value"].tolist() == [(2 + 6) / 2]
    assert frame["seeds"].tolist() == [2]
    assert (frame["low"].tolist(), frame["high"].tolist()) == ([1], [6])


def test_a_run_that_ended_early_or_steps_otherwise_counts_where_it_has_a_value() -> None:
    two = setting(run("a"), run("b", seed=1))
    frame = over_seeds(two, [curve(1, 2, 3, 4), curve(5, 6, steps=[0, 1])], "step")
    assert frame["value"].tolist() == [3, 4, 3, 4]
    assert frame["seeds"].tolist() == [2, 2, 1, 1]
    frame = over_seeds(two, [curve(1, 2, 3, steps=[0, 10, 20]), curve(5, 7, steps=[0, 14])], "step")
    assert frame[["step", "value"]].to_numpy().tolist() == [[0, 3], [10, 4.5], [20, 3]]


def test_bins_keep_their_own_ends_and_nan_is_passed_over() -> None:
    binned = [curve(2, math.nan, low=[1, 1], high=[9, 9]), curve(4, 4, low=[3, 3], high=[5, 5])]
    frame = over_seeds(setting(run("a"), run("b", seed=1)), binned, "step")
    assert frame[["value", "low", "high"]].to_numpy().tolist() == [[3, 1, 9], [4, 3, 5]]
    nothing = over_seeds(setting(run("a")), [curve(math.nan)], "step")
    assert not len(nothing)
    assert [*nothing.columns] == [*frame.columns]


def test_the_run_of_median_accuracy_stands_for_its_setting() -> None:
    runs = [run(str(k), seed=k) for k in range(4)]
    assert representative(setting(*runs[:3]), [90.0, 95.0, 93.0]) == 2
    assert representative(setting(*runs), [90.0, 95.0, 93.0, 91.0]) == 3
    assert representative(setting(*runs), [None, 95.0, None, None]) == 1
    assert representative(setting(*runs), [None] * 4) == 0
    gone = [run("a", status="diverged"), run("b", seed=1)]
    assert representative(setting(*gone), [99.0, 10.0]) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_shorter_run_of_as_many_points_cuts_no_curve_off(order: int) -> None:
    """Every long run has as many bins, whatever its length."""
    runs = [run("short", seed=0), run("long", seed=1)][::order]
    curves = [curve(1, 2, 3, steps=[0, 10, 20]), curve(5, 6, 7, steps=[0, 100, 200])][::order]
    found = over_seeds(setting(*runs), curves, "step")
    assert found["step"].tolist() == [0, 100, 200]
    assert found["value"].tolist() == [(2 + 5) / 2, 6, 7]
    assert found["seeds"].tolist() == [2, 1, 1]
