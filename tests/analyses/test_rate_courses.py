"""Peaks and warm-ups of parameter groups whose rates and schedules differ; the answers are known by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import warm
from tvlars_probe.analyses.facts import PARAMETER_COLUMNS, RunFacts
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.rate_courses import RateCourses, rate_courses, share_of

T = 40
FALLING = 1 - np.arange(T) / T
NONE = np.full(T, np.nan)


def found(*rates: np.ndarray, groups: list[int] | None = None, every: int = 1, **told: Any) -> RateCourses:
    """The courses of tensors "0", "1", ... with these rates; by default each has a group of its own."""
    names = tuple(map(str, range(len(rates))))
    place = groups or list(range(len(rates)))
    table = pd.DataFrame({"name": names, "optimizer": 0, "group": place}).reindex(columns=[*PARAMETER_COLUMNS])
    entries = [{"optimizer": "SGD", "parameters": place.count(k)} for k in range(max(place) + 1)]
    lr = np.column_stack(rates).astype(np.float32)[::every]
    grid = LayerGrid(np.arange(0, T, every), names, {"lr": lr})
    return rate_courses(grid, RunFacts(name="made", groups=entries, parameters=table, **told))


@pytest.mark.parametrize("share", [0.01, 4.0])
def test_groups_of_one_schedule_have_peaks_of_their_own(share: float) -> None:
    courses = found(warm(T, 10), share * warm(T, 10), peak_lr=1.0)
    assert courses.peaks.tolist() == pytest.approx([1.0, share])
    assert courses.reached.tolist() == [10, 10]
    assert courses.main_peak == 1.0


def test_groups_of_unlike_schedules_have_unlike_warm_ups() -> None:
    rates = warm(T, 10), 0.5 * warm(T, 4), 3 * FALLING, 2 * warm(T, 2 * T)
    courses = found(*rates, peak_lr=1.0)
    assert courses.peaks.tolist() == pytest.approx([rate.max() for rate in rates])
    assert courses.reached.tolist() == [10, 4, 0, T]  # the last is still rising at the end
    assert courses.before_peak(T).sum(axis=0).tolist() == [10, 4, 0, T]


def test_a_group_that_joins_later_has_the_peak_that_it_had_and_a_warm_up_from_there() -> None:
    late = np.where(np.arange(T) < 20, np.nan, FALLING)
    warmed = np.where(np.arange(T) < 20, np.nan, np.minimum((np.arange(T) - 19) / 5, 1))
    courses = found(FALLING, late, warmed, peak_lr=1.0)
    assert courses.peaks.tolist() == pytest.approx([1.0, FALLING[20], 1.0])
    assert courses.begins.tolist() == [0, 20, 20]
    assert courses.reached.tolist() == [0, 20, 24]


def test_a_rate_that_is_always_zero_or_not_on_record_has_no_other_groups_peak() -> None:
    courses = found(warm(T, 10), np.zeros(T), NONE, peak_lr=1.0)
    assert courses.peaks[:2].tolist() == [1.0, 0.0]
    assert np.isnan(courses.peaks[2])
    zero = found(np.zeros(T), np.ones(T), peak_lr=0.0)
    assert zero.peaks.tolist() == [0.0, 1.0]
    assert found(NONE).reached.tolist() == [0]


def test_a_tensor_without_rows_at_the_peak_has_the_peak_of_its_group() -> None:
    frozen = np.where(np.arange(T) < 15, np.nan, FALLING)
    courses = found(FALLING, frozen, groups=[0, 0])
    assert courses.peaks.tolist() == [1.0, 1.0]
    assert courses.reached.tolist() == [0, 0]


def test_a_tensor_with_another_rate_than_its_group_stands_for_itself() -> None:
    assert found(warm(T, 10), 4 * warm(T, 10), groups=[0, 0], peak_lr=1.0).peaks.tolist() == pytest.approx([1.0, 4.0])


def test_a_peak_between_the_recorded_steps_is_that_of_the_manifest_for_all_groups_that_move_alike() -> None:
    peaked = np.interp(np.arange(T), [0, 20, T], [0, 1, 0])
    other = np.interp(np.arange(T), [0, 8, T], [0, 1, 0])
    courses = found(peaked, 4 * peaked, other, every=3, peak_lr=1.0)
    assert courses.peaks.tolist() == pytest.approx([1.0, 4.0, other[::3].max()])
    assert courses.reached.tolist() == [7, 7, 3]  # steps 21 and 9


def test_a_manifest_that_tells_less_than_the_trace_shows_is_not_believed() -> None:
    assert found(warm(T, 10), 2 * warm(T, 10), peak_lr=0.25).peaks.tolist() == pytest.approx([1.0, 2.0])


def test_a_grid_without_steps_or_tensors_has_no_peaks() -> None:
    facts = RunFacts(name="made")
    assert rate_courses(LayerGrid(np.arange(0), (), {"lr": np.empty((0, 0))}), facts).peaks.tolist() == []
    empty = rate_courses(LayerGrid(np.arange(0), ("a",), {"lr": np.empty((0, 1))}), facts)
    assert np.isnan(empty.peaks).all()
    assert empty.reached.tolist() == [0]


@pytest.mark.parametrize(
    ("course", "share"),
    [
        (0.25 * warm(T, 10), 0.25),
        (np.zeros(T), 0.0),
        (np.ones(T), None),
        (np.where(np.arange(T) < 30, np.nan, 0.5), 0.5),
        (NONE, None),
    ],
    ids=["scaled", "zero", "constant beside a warm-up", "later", "nowhere"],
)
def test_a_rate_is_a_share_of_another_where_one_schedule_scales_both(course: np.ndarray, share: float | None) -> None:
    told = share_of(course.astype(np.float32).astype(float), warm(T, 10))
    assert np.isnan(told) if share is None else told == pytest.approx(share)


def test_rates_that_no_step_tells_together_are_compared_where_they_never_change() -> None:
    even = np.where(np.arange(T) % 2, np.nan, 0.5)
    assert share_of(even, np.where(np.arange(T) % 2, 0.25, np.nan)) == 2.0
    assert np.isnan(share_of(even, np.where(np.arange(T) % 2, FALLING, np.nan)))
