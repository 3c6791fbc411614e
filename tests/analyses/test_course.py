from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.course import Course, lost_at
from tvlars_probe.analyses.facts import RunFacts

NAN, INF = np.nan, np.inf


def course(loss: list[float], recorded: Any = None, finding: Any = None) -> tuple[list[int], int | None]:
    """The recorded rows that are marked as harmed, and the row from which the run is."""
    steps = pd.DataFrame({"step": np.arange(len(loss)), "loss": loss})
    rows = np.arange(len(loss)) if recorded is None else np.array(recorded)
    found = Course.of(rows, steps, RunFacts(name="x", finding=finding), loss_rise=1.5)
    return np.flatnonzero(found.harmed).tolist(), found.until


def test_a_loss_that_comes_back_was_harmed_but_not_for_good() -> None:
    assert course([2.0, 1.0, 3.0, 9.0, 1.0]) == ([2, 3], None)
    assert course([2.0, INF, 1.0]) == ([1], None)


def test_a_loss_that_stays_high_or_is_lost_is_harmed_for_good() -> None:
    assert course([2.0, 5.0, 1.0, 3.0, 1e9]) == ([1, 3, 4], 3)
    assert course([2.0, 1.0, NAN], finding={"step": 2, "loss": "nan"}) == ([2], 2)
    assert course([NAN], finding={"step": 0, "loss": "nan"}) == ([0], 0)


def test_a_loss_that_is_not_told_is_not_harmed() -> None:
    assert course([NAN, 2.0, NAN, 1.0, NAN]) == ([], None)
    assert course([NAN, NAN]) == ([], None)
    assert course([]) == ([], None)


def test_a_first_loss_at_or_below_zero_has_no_multiples() -> None:
    assert course([0.0, 5.0]) == ([], None)
    assert course([-1.0, 5.0, INF]) == ([2], 2)


def test_a_recorded_step_stands_for_those_until_the_next_one() -> None:
    assert course([1.0, 1.0, 9.0, 1.0, 1.0, 1.0], recorded=[0, 3]) == ([0], None)
    assert course([1.0, 1.0, 1.0, 1.0, 9.0, 9.0], recorded=[0, 3]) == ([1], 2)


@pytest.mark.parametrize(
    ("finding", "step"),
    [
        (None, None),
        ({"step": 2, "loss": "nan"}, 2),
        ({"step": 2, "loss": None}, 2),
        ({"step": 2, "loss": 1.5}, None),
        ({"step": 99, "loss": "nan"}, None),
    ],
    ids=["none", "nan", "not told", "of a norm", "of another phase"],
)
def test_a_finding_counts_if_it_is_of_these_steps_and_of_the_loss(finding: Any, step: int | None) -> None:
    steps = pd.DataFrame({"step": np.arange(4), "loss": 1.0})
    assert lost_at(steps, RunFacts(name="x", finding=finding)) == step


def test_a_run_that_diverged_is_harmed_from_the_step_in_which_a_tensor_went_first() -> None:
    steps = pd.DataFrame({"step": np.arange(5), "loss": [1.0, 1.0, 1.0, np.nan, np.nan]})
    finding = {"step": 2, "loss": 1.0, "tensor": "w", "quantity": "grad_norm"}
    facts = RunFacts(name="x", finding=finding, status="diverged")
    assert lost_at(steps, facts) == 2
    found = Course.of(np.arange(5), steps, facts, loss_rise=1.5)
    assert (np.flatnonzero(found.harmed).tolist(), found.until) == ([2], 2)
