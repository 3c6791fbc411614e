"""Lengths and counts in updates, of runs whose layers are recorded in some of them only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.analyses.synthetic import lars_facts, layers, losses
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.warmup.analysis import Warmup, analyse_warmup

T, W, HOT = 100, 20, 13
FALLING = np.linspace(2.3, 0.1, T)
NAMES = ("a.weight", "a.bias")
EVERY = {n: np.arange(0, T, n) for n in (1, 2, 3, 5, 7)}
UNEVEN = {
    "then every tenth": np.array([*range(30), *range(30, T, 10)]),
    "then each": np.array([*range(0, 60, 6), *range(60, T)]),
}


def recorded(steps: Any, *, warmup: int = W, first: int = 0, lr: bool = True) -> Warmup:
    """A weight that is hot, and a bias that is overwritten, in the first `HOT` updates; recorded at ``steps``."""
    early = np.arange(T) < HOT
    grad = {"a.weight": np.where(early, 0.1, 1.0), "a.bias": np.where(early, 3.0, 0.1)}
    rate = np.minimum((np.arange(T) + 1) / (warmup + 1), 1.0)  # at a rate of zero nothing is known
    frame = layers({name: np.ones(T) for name in NAMES}, grad, rate, biases=("a.bias",))
    frame = frame[frame["step"].isin(steps)].assign(step=lambda rows: rows["step"] + first)
    told = losses(FALLING).assign(step=np.arange(T) + first)
    facts = lars_facts(NAMES, biases=("a.bias",), first_step=first)
    return analyse_warmup(LayerGrid.from_frame(frame, NAMES), told.assign(lr=rate) if lr else told, facts)


@pytest.mark.parametrize("n", EVERY)
def test_what_is_seen_at_a_recorded_step_lasts_until_the_next_one(n: int) -> None:
    until = min(step for step in EVERY[n] if step >= HOT)  # the first recorded step at which it is over
    result = recorded(EVERY[n])
    assert result.suggested_steps == until
    table = result.layers.set_index("parameter")
    assert table["length"].tolist() == [until, until]
    assert table.loc["a.weight", "hot_steps"] == table.loc["a.bias", "overwritten_steps"] == until


@pytest.mark.parametrize("n", EVERY)
@pytest.mark.parametrize("warmup", [0, 1, 12, 20, 21])
def test_the_recorded_warm_up_is_exact_where_the_rate_of_every_update_is_known(n: int, warmup: int) -> None:
    assert recorded(EVERY[n], warmup=warmup).warmup_steps == warmup
    assert recorded(EVERY[n], warmup=warmup, lr=False).warmup_steps == min(s for s in EVERY[n] if s >= warmup)


@pytest.mark.parametrize("name", UNEVEN)
def test_a_run_that_was_recorded_more_densely_in_one_part_gives_the_same_answer(name: str) -> None:
    full, uneven = recorded(EVERY[1]), recorded(UNEVEN[name])
    until = min(step for step in UNEVEN[name] if step >= HOT)
    assert uneven.suggested_steps == until
    assert uneven.verdict.answer == full.verdict.answer
    assert uneven.layers["redundant_share"][0] == pytest.approx(full.layers["redundant_share"][0], abs=6 / W)
    assert uneven.layers["start_over_settled"].tolist() == full.layers["start_over_settled"].tolist()


def test_lengths_count_from_a_phases_first_update_although_its_layers_are_recorded_later() -> None:
    late = recorded(np.arange(4, T, 5), first=1437)
    assert late.suggested_steps == 14  # the first recorded step at which it is over, counted from update 1437
    assert late.warmup_steps == W
    assert late.last_early == 1437 + 24


def test_one_recorded_step_never_makes_a_tensor_overwritten_however_many_updates_it_stands_for() -> None:
    once = recorded(np.array([0, 20, 40, 60, 80, 99]))
    assert once.layers.set_index("parameter").loc["a.bias", "overwritten_steps"] == 20
    assert once.verdict["overwritten"] == 0
    assert recorded(EVERY[5]).verdict["overwritten"] == 1


def test_a_stretch_that_lasts_to_the_end_of_the_trace_lasts_to_the_step_that_would_have_come_next() -> None:
    assert recorded(np.arange(0, 11, 5)).layers["length"].tolist() == [0, 15]  # no settled part to be hot beside


def test_a_loss_that_is_told_now_and_then_recovers_by_the_first_update_of_all() -> None:
    loss = np.full(T, np.nan)
    loss[4::5] = np.where(np.arange(4, T, 5) < 30, 9.0, 1.0)
    loss[4] = 2.0
    frame = layers({"a": np.ones(T)}, {"a": np.ones(T)}, np.ones(T))
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(loss), lars_facts(("a",)))
    assert result.early.recovered_after == 34
    assert result.suggested_steps == 34


def test_a_loss_that_is_lost_in_another_phase_says_nothing_of_this_one() -> None:
    frame = layers({"a": np.ones(T)}, {"a": np.ones(T)}, np.ones(T))
    facts = lars_facts(("a",), finding={"step": 5 * T, "loss": "nan"})
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(FALLING), facts)
    assert result.early.bad_step is None
    assert result.verdict.answer != "diverged"
