"""Sharpness by step: means over draws with their intervals, and what the subtitle says of the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.test_minimizer import PEAK, analysed, draws_of, rows
from tests.charts.specs import data_sets
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.sharpness import sharpness_curves


def marks(spec: dict[str, Any]) -> list[str]:
    return [layer["mark"]["type"] for layer in spec["spec"]["layer"]]


def test_a_mean_over_draws_has_a_bar_of_its_interval() -> None:
    result = analysed(draws_of("hessian", PEAK, 0.01))
    spec = spec_of(sharpness_curves([result]))
    assert marks(spec) == ["line", "rule", "point"]
    drawn = pd.DataFrame(next(data_sets(spec)))
    # Of two values Student's 95 % is 12.7062 standard errors, and the standard error half their distance.
    assert (drawn["high"] - drawn["value"]).to_numpy() == pytest.approx(0.127062, rel=0.1)  # rounded to five digits
    assert (drawn["bar"] == drawn["low"]).all()
    assert "mean of 2 samples of 64 (bars: 95 % of the mean)" in spec["title"]["subtitle"]


def test_an_interval_below_zero_ends_at_the_lowest_point_of_its_panel() -> None:
    spec = spec_of(sharpness_curves([analysed(draws_of("hessian", PEAK, 3.0), draws_of("relative", PEAK + 40, 0.1))]))
    drawn = pd.DataFrame(next(data_sets(spec)))
    below = drawn[drawn["low"] <= 0]
    assert len(below) > 1
    hessian = drawn[drawn["operator"] == "hessian"]
    least = min(hessian["value"].min(), hessian.loc[hessian["low"] > 0, "low"].min())
    assert below["bar"].tolist() == [least] * len(below)


def test_without_draws_there_are_no_bars_and_the_sample_is_told() -> None:
    alone = analysed(rows("hessian", PEAK))
    spec = spec_of(sharpness_curves([alone]))
    assert marks(spec) == ["line", "point"]
    assert "loss on train data, on a sample of 64, BatchNorm mode train" in spec["title"]["subtitle"]
    both = spec_of(sharpness_curves([alone, analysed(rows("hessian", PEAK, samples=np.nan), name="other")]))
    assert "on a sample of 64 and on a sample of unknown size" in both["title"]["subtitle"]
