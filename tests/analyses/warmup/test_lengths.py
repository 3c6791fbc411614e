"""Warm-ups in updates, of groups whose rates and schedules differ and whose layers are recorded in some steps only."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import warm
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.rate_courses import rate_courses
from tvlars_probe.analyses.warmup.lengths import WarmupLengths

T, W, EARLY = 60, 12, 25


def lengths(*rates: np.ndarray, every: int, start: int = 0) -> tuple[list[float], int | None, int]:
    """Lengths of tensors with these rates, the first of which is the first group's; that of the run; the last early."""
    recorded = np.arange(start, T, every)
    lr = np.column_stack(rates).astype(np.float32)[recorded]
    grid = LayerGrid(recorded, tuple(map(str, range(len(rates)))), {"lr": lr})
    courses = rate_courses(grid, RunFacts(name="made", peak_lr=float(rates[0].max())))
    found = WarmupLengths.of(recorded, pd.DataFrame({"step": np.arange(T), "lr": rates[0]}), courses)
    return (found.lengths.tolist(), *found.of_run(recorded, courses, EARLY))


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_groups_that_follow_the_first_ones_rate_have_exact_lengths_of_their_own(every: int, start: int) -> None:
    assert lengths(warm(T, W), 4 * warm(T, W), every=every, start=start) == ([W, W], W, EARLY - 1)


def test_a_group_of_another_schedule_is_at_its_peak_at_the_recorded_step_that_shows_it() -> None:
    assert lengths(warm(T, W), 2 * warm(T, 28), np.ones(T), every=5) == ([W, 30, 0], 30, 29)


def test_a_group_that_joins_counts_from_the_step_in_which_it_is_first_seen() -> None:
    late = np.where(np.arange(T) < 30, np.nan, np.minimum((np.arange(T) - 29) / 10, 1))
    assert lengths(np.ones(T), late, np.where(np.arange(T) < 30, np.nan, 3.0), every=5) == ([0, 10, 0], 0, EARLY - 1)


def test_a_rate_that_still_rises_at_the_end_has_no_length() -> None:
    found, of_run, last = lengths(np.ones(T), warm(T, 2 * T), every=5)
    assert found == pytest.approx([0, np.nan], nan_ok=True)
    assert (of_run, last) == (None, 55)


def test_without_recorded_layers_no_warm_up_is_told() -> None:
    grid = LayerGrid(np.arange(0), ("a",), {"lr": np.empty((0, 1))})
    courses = rate_courses(grid, RunFacts(name="made"))
    found = WarmupLengths.of(grid.steps, pd.DataFrame({"step": np.arange(3), "lr": 1.0}), courses)
    assert np.isnan(found.lengths).all()
    assert found.of_run(grid.steps, courses, EARLY) == (None, EARLY - 1)
